"""Calibrated methods on whole models: better than rounding to nearest, streamed, exactly resumed, and told."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
)

from potstill.core.durable import sha256_of_file
from potstill.core.errors import InputError
from potstill.core.trace import Trace
from potstill.data.sequences import PackedSequences
from potstill.model.weights import Weights, dequantize, load_quantized
from potstill.quantize.calibration import CalibrationText, draw_text
from potstill.quantize.memory import peak_bytes
from potstill.quantize.methods import round_by_search
from potstill.quantize.parts import WorkSoFar
from potstill.quantize.placement import Grid
from potstill.quantize.settings import Awq, Gptq, Int4, Int8, Int8Channel, KQuant2, Rtn, Search, SmoothQuant
from potstill.quantize.stage import quantize_model
from potstill.quantize.streaming import HiddenStates, StreamedModel, batches

WIDE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "max_position_embeddings": 128}


@pytest.fixture
def events():
    return []


@pytest.fixture
def trace(events):
    return Trace(listeners=[events.append])


def random_text(rows=6, tokens=48, vocabulary=400, seed=0):
    generator = np.random.default_rng(seed)
    return CalibrationText(generator.integers(0, vocabulary, (rows, tokens)), generator.integers(8, tokens + 1, rows))


@pytest.fixture(scope="module")
def trained(make_llama, tmp_path_factory):
    """A model that has learned a little language of 400 words in which each word has few successors."""
    source = make_llama("to-train", **WIDE, spread=0.05)
    generator = np.random.default_rng(0)
    successors = generator.integers(0, 400, (400, 4))
    rows = np.zeros((288, 48), dtype=np.int64)
    rows[:, 0] = generator.integers(0, 400, 288)
    for place in range(1, 48):
        rows[:, place] = successors[rows[:, place - 1], generator.choice(4, 288, p=[0.6, 0.2, 0.15, 0.05])]
    model = AutoModelForCausalLM.from_pretrained(source)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for step in range(90):
        batch = torch.from_numpy(rows[(step % 8) * 32 : (step % 8) * 32 + 32])
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    directory = tmp_path_factory.mktemp("trained")
    model.save_pretrained(directory)
    return directory, CalibrationText(rows[:128], np.full(128, 48)), torch.from_numpy(rows[256:])


def divergence(exact, other, tokens):
    """Mean KL(exact || other) over held-out positions, in nats."""
    with torch.no_grad():
        ours, theirs = (model(input_ids=tokens).logits.double().log_softmax(-1) for model in (exact, other))
    return float(functional.kl_div(theirs, ours, log_target=True, reduction="sum") / tokens.numel())


def test_search_gptq_and_awq_each_beat_rounding_to_nearest_at_int4_g128(trained, tmp_path):
    source, text, held_out = trained
    exact = AutoModelForCausalLM.from_pretrained(source).eval()
    lost = {}
    for method in (Rtn(), Search(), Gptq(), Gptq(activation_order=False), Awq()):
        key = f"{method.kind}-{getattr(method, 'activation_order', '')}"
        quantize_model(Int4(group=128, method=method), source, tmp_path / key, Trace(), text)
        lost[key] = divergence(exact, load_quantized(tmp_path / key), held_out)
    plain = lost.pop("rtn-")
    assert all(value < 0.92 * plain for value in lost.values()), (plain, lost)
    assert max(lost["gptq-True"], lost["gptq-False"]) < 0.8 * plain, (plain, lost)


def test_smoothquant_lowers_what_int8_activations_cost_where_some_columns_are_large(trained, tmp_path):
    """Norm weights with outliers, as in large models: one scale per token then leaves little for the others."""
    source, text, held_out = trained
    model = AutoModelForCausalLM.from_pretrained(source).eval()
    with torch.no_grad():
        for block in model.model.layers:
            for norm, readers in (
                (block.input_layernorm, (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj)),
                (block.post_attention_layernorm, (block.mlp.gate_proj, block.mlp.up_proj)),
            ):
                factors = torch.ones(128)
                factors[::40] = 60.0
                norm.weight.mul_(factors)
                for reader in readers:
                    reader.weight.div_(factors)
    model.save_pretrained(tmp_path / "outliers")
    lost = {}
    for method in (Rtn(), SmoothQuant()):
        quantize_model(Int8Channel(method=method), tmp_path / "outliers", tmp_path / method.kind, Trace(), text)
        lost[method.kind] = divergence(model, load_quantized(tmp_path / method.kind), held_out)
    assert lost["smoothquant"] < 0.3 * lost["rtn"], lost


@pytest.mark.parametrize("scheme", [Int4(method=Gptq()), Int8(method=Search()), KQuant2(method=Search())])
def test_what_each_linear_saw_is_in_the_artefact_and_in_the_trace(make_llama, tmp_path, trace, events, scheme):
    source, text = make_llama("wide2", hidden_size=256, intermediate_size=256, num_hidden_layers=2), random_text()
    quantize_model(scheme, source, tmp_path, trace, text)
    told = json.loads((tmp_path / "calibration.json").read_text())
    assert told["tokens"] == int(text.lengths_N.sum())
    assert len(told["linears"]) == 15, "seven in each block, and the head"
    assert {facts["tokens"] for facts in told["linears"].values()} == {text.num_tokens}, "padding is never counted"
    metrics = {event["name"]: event["value"] for event in events if event["kind"] == "metric"}
    assert metrics["calibration_tokens"] == text.num_tokens
    assert not (tmp_path / "parts").exists()


MODELS = {
    "mistral-window": lambda: MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=8)),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **SIZES,
            num_key_value_heads=2,
            head_dim=16,
            sliding_window=8,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        )
    ),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=128, n_embd=64, n_layer=3, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0)
    ),
}
SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_run_block_by_block_is_the_model(tmp_path, name, monkeypatch):
    """Hidden states after the last block and the final norm are those of transformers, with several batches."""
    monkeypatch.setattr("potstill.quantize.streaming.TOKENS_PER_BATCH", 50)
    model = MODELS[name]().eval()
    model.save_pretrained(tmp_path / "model")
    weights = Weights(tmp_path / "model")
    streamed = StreamedModel(weights, bfloat16=False)
    tokens = np.random.default_rng(0).integers(0, 128, (5, 24))
    hidden = HiddenStates(tmp_path / "0", (5, 24, 64))
    streamed.embed(tokens, hidden)
    for block in range(streamed.num_blocks):
        names = [name for name in weights.names if name.startswith(streamed.prefix(block))]
        streamed.fill(block, {name: weights.read(name) for name in names})
        after = HiddenStates(tmp_path / str(block + 1), hidden.shape)
        with after.writing() as write:
            for rows in batches(5, 24):
                write(streamed.run(block, hidden, rows))
        streamed.empty(block)
        hidden = after
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(tokens), output_hidden_states=True).hidden_states[-1]
        ours = model.get_submodule(streamed.family.norm)(hidden.read(slice(0, 5)))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", [Gptq(), Search(), Awq()], ids=lambda method: method.kind)
@pytest.mark.parametrize("name", ["gemma3", "gpt2"])
def test_other_families_are_calibrated_too(tmp_path, name, method):
    model = MODELS[name]().eval()
    model.save_pretrained(tmp_path / "model")
    text = random_text(vocabulary=128)
    quantize_model(Int8(method=method), tmp_path / "model", tmp_path / "int8", Trace(), text)
    tokens = torch.from_numpy(text.tokens_NT)
    with torch.no_grad():
        exact, ours = model(input_ids=tokens).logits, load_quantized(tmp_path / "int8")(input_ids=tokens).logits
    assert float((ours - exact).norm() / exact.norm()) < 0.03


PROGRAM = """
import sys
import numpy as np
from pathlib import Path
from potstill.core.trace import Trace
from potstill.quantize.calibration import CalibrationText
from potstill.quantize.settings import *
from potstill.quantize.stage import quantize_model
generator = np.random.default_rng(0)
text = CalibrationText(generator.integers(0, 400, (6, 48)), generator.integers(8, 49, 6))
quantize_model(Int4(method=Gptq()), Path(sys.argv[1]), Path(sys.argv[2]), Trace(), text)
"""


KILLS_ITSELF = """
import os, signal
from potstill.quantize.methods import round_by_search
from potstill.quantize.parts import WorkSoFar
from potstill.quantize.placement import Grid
finish, count = WorkSoFar.finish, []
def finish_or_die(self, part, entries, facts):
    count.append(part)
    if len(count) == int(sys.argv[3]) and sys.argv[4] == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    told = finish(self, part, entries, facts)
    if len(count) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return told
WorkSoFar.finish = finish_or_die
"""


def test_killed_at_any_block_it_goes_on_there_and_ends_in_the_same_bytes(make_llama, tmp_path):
    """A real SIGKILL, before a block is on disk and again right after one is, in one quantization."""
    source = make_llama("tied")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    quantize_model(Int4(method=Gptq()), source, whole, Trace(), random_text())
    program = PROGRAM.replace("generator =", KILLS_ITSELF + "generator =", 1)
    for place in (("4", "before"), ("1", "after")):  # of five parts: the norm, three blocks, the head
        ended = subprocess.run([sys.executable, "-c", program, str(source), str(killed), *place], check=False)
        assert ended.returncode == -signal.SIGKILL
    assert len(list((killed / "parts").glob("*.safetensors"))) == 4
    quantize_model(Int4(method=Gptq()), source, killed, Trace(), random_text())
    names = sorted(path.name for path in whole.iterdir())
    assert names == sorted(path.name for path in killed.iterdir())
    assert [sha256_of_file(whole / name) for name in names] == [sha256_of_file(killed / name) for name in names]


def test_a_finished_block_is_not_quantized_again(make_llama, tmp_path, monkeypatch):
    source, text = make_llama("tied"), random_text()
    finish, stopped = WorkSoFar.finish, []

    def stop_once_in_the_second_block(self, part, entries, facts):
        if part.block == 1 and "once" not in stopped:
            stopped[:] = ["once"]
            raise KeyboardInterrupt
        stopped.append(part.block)
        return finish(self, part, entries, facts)

    monkeypatch.setattr(WorkSoFar, "finish", stop_once_in_the_second_block)
    with pytest.raises(KeyboardInterrupt):
        quantize_model(Int4(method=Search()), source, tmp_path, Trace(), text)
    quantize_model(Int4(method=Search()), source, tmp_path, Trace(), text)
    assert stopped[1:] == [1, 2, None], "the head comes last"


def test_peak_memory_does_not_grow_with_depth(make_llama, tmp_path):
    """The peak resident set of a process over the work alone, at 2 blocks and at 12, whose weights are 58 MB more.

    Freed memory goes back to the system at once here: what glibc keeps for itself grows over the first few blocks.
    """
    program = (
        "from potstill.core.memory import peak_memory_bytes, reset_peak_memory\n"
        "from potstill.model.store import load_model\n"
        + PROGRAM.replace(
            "quantize_model(Int4(method=Gptq()), Path(sys.argv[1])",
            "quantize_model(Int4(method=Gptq()), Path(sys.argv[3]), Path(sys.argv[2]) / 'first', Trace(), text)\n"
            "reset_peak_memory()\nquantize_model(Int4(method=Gptq()), Path(sys.argv[1])",
        )
        + "print(peak_memory_bytes())\n"
    )
    warm = make_llama("depth-2", hidden_size=256, intermediate_size=1536, num_hidden_layers=2)
    peaks = {}
    for depth in (2, 12):
        source = make_llama(f"depth-{depth}", hidden_size=256, intermediate_size=1536, num_hidden_layers=depth)
        ended = subprocess.run(
            [sys.executable, "-c", program, str(source), str(tmp_path / str(depth)), str(warm)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"},
        )
        peaks[depth] = int(ended.stdout)
    assert (tmp_path / "12" / "quantized.safetensors").exists()
    ten_blocks_bytes = 10 * 4 * (4 * 256 * 256 + 3 * 256 * 1536)
    assert peaks[12] - peaks[2] < 0.4 * ten_blocks_bytes, peaks
    foretold = peak_bytes(
        Int4(method=Gptq()), embedding=400 * 256, block=ten_blocks_bytes // 40, width=256, mlp_width=1536
    )
    assert peaks[12] < 500_000_000 + foretold


def test_dead_columns_and_a_singular_hessian_are_told(make_llama, tmp_path, trace):
    """A norm weight of zero makes a column of the next linears dead; one row of text makes every Hessian singular."""
    model = AutoModelForCausalLM.from_pretrained(make_llama("tied"))
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[:5] = 0
    model.save_pretrained(tmp_path / "dead")
    text = CalibrationText(np.arange(8)[None], np.array([8]))
    quantize_model(Int4(method=Gptq()), tmp_path / "dead", tmp_path / "out", trace, text)
    linears = json.loads((tmp_path / "out" / "calibration.json").read_text())["linears"]
    assert linears["model.layers.1.self_attn.q_proj.weight"]["dead_columns"] == 5
    assert linears["model.layers.0.self_attn.q_proj.weight"]["dead_columns"] == 0
    for name, entry in load_file(tmp_path / "out" / "quantized.safetensors").items():
        assert np.isfinite(entry.astype(np.float32)).all(), name


def test_a_singular_hessian_is_damped_until_it_has_a_factor_and_that_is_a_fallback(make_llama, tmp_path, trace, events):
    """Eight tokens give Hessians of rank eight: with next to no damping the ladder has to be climbed."""
    text = CalibrationText(np.arange(8)[None], np.array([8]))
    quantize_model(Int4(method=Gptq(damping=1e-12)), make_llama("tied"), tmp_path, trace, text)
    linears = json.loads((tmp_path / "calibration.json").read_text())["linears"]
    climbed = [name for name, facts in linears.items() if facts["damping"] > 1e-12]
    told = [event["value"] for event in events if event["kind"] == "fallback"]
    assert climbed
    assert len([text for text in told if "its Hessian is singular: damped by" in text]) == len(climbed)
    for name, entry in load_file(tmp_path / "quantized.safetensors").items():
        assert np.isfinite(entry.astype(np.float32)).all(), name


def test_a_hessian_that_overflows_is_told_and_scales_are_searched_instead(make_llama, tmp_path, trace, events):
    """Activations of 1e25 are finite, and their squares aren't."""
    model = AutoModelForCausalLM.from_pretrained(make_llama("tied"))
    with torch.no_grad():
        model.model.layers[1].post_attention_layernorm.weight[:] = 1e25
    model.save_pretrained(tmp_path / "huge")
    quantize_model(Int4(method=Gptq()), tmp_path / "huge", tmp_path / "out", trace, random_text())
    told = [event["value"] for event in events if event["kind"] == "fallback"]
    assert "model.layers.1.mlp.up_proj: its Hessian isn't finite: scales are searched instead" in told
    for name, entry in load_file(tmp_path / "out" / "quantized.safetensors").items():
        assert np.isfinite(entry.astype(np.float32)).all(), name


def test_nan_weights_are_refused_by_name(make_llama, tmp_path, trace):
    model = AutoModelForCausalLM.from_pretrained(make_llama("tied"))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = torch.nan
    model.save_pretrained(tmp_path / "nan")
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj\.weight: 1 weights are NaN"):
        quantize_model(Int4(method=Gptq()), tmp_path / "nan", tmp_path / "out", trace, random_text())


def test_columns_of_172_stay_float16_under_gptq_and_are_told(make_llama, tmp_path, trace, events):
    source = make_llama("odd172", intermediate_size=172)
    quantize_model(Int4(method=Gptq()), source, tmp_path, trace, random_text())
    fallbacks = [event["value"] for event in events if event["kind"] == "fallback"]
    assert len(fallbacks) == 3
    assert "172 columns, no multiple of 32: kept in float16 instead of int4-gptq" in fallbacks[0]


def test_no_text_a_foreign_text_and_an_unknown_family_are_refused(make_llama, tmp_path, trace):
    source = make_llama("tied")
    with pytest.raises(InputError, match="no text to calibrate on"):
        quantize_model(Int4(method=Gptq()), source, tmp_path / "a", trace)
    with pytest.raises(InputError, match="has token 999, the model 400"):
        quantize_model(
            Int4(method=Gptq()), source, tmp_path / "b", trace, CalibrationText(np.full((1, 4), 999), np.array([4]))
        )
    config = json.loads((source / "config.json").read_text())
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    (tmp_path / "foreign" / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match="family 'mamba', whose parts potstill doesn't know"):
        quantize_model(Int4(method=Gptq()), tmp_path / "foreign", tmp_path / "c", trace, random_text())


def test_text_is_drawn_evenly_and_too_little_of_it_is_told(trace, events):
    rows = np.arange(40, dtype=np.uint16).reshape(10, 4)
    sequences = PackedSequences(rows, np.full(10, 4, dtype=np.int32), np.ones(10, dtype=np.int32))
    assert draw_text(sequences, 12, trace).tokens_NT[:, 0].tolist() == [0, 16, 36]
    assert not events
    assert draw_text(sequences, 100, trace).num_tokens == 40
    assert [event["kind"] for event in events] == ["fallback"]


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_is_quantized_on_what_it_reads(make_llama, tmp_path, trace, tied):
    """Its error on the text is less than that of scales searched on its weights alone, which it got before."""
    source = make_llama(f"head-{tied}", hidden_size=64, intermediate_size=96, tie_word_embeddings=tied)
    text = random_text()
    quantize_model(Int4(method=Gptq()), source, tmp_path / "gptq", trace, text)
    told = json.loads((tmp_path / "gptq" / "calibration.json").read_text())["linears"]
    name = "model.embed_tokens.weight" if tied else "lm_head.weight"
    assert told[name]["tokens"] == int(text.lengths_N.sum())
    inputs_PD = _final_states(source, text)
    exact = Weights(source).read(name).float()
    coded = torch.from_numpy(dequantize(Weights(tmp_path / "gptq").read_coded(name)))
    searched = torch.from_numpy(dequantize(round_by_search(exact, Grid("int4", 32), None)))
    errors = [float((inputs_PD @ (weight - exact).T).square().sum()) for weight in (coded, searched)]
    assert errors[0] < 0.9 * errors[1]


def _final_states(source, text):
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    with torch.inference_mode():
        states_NTD = model.model(input_ids=torch.from_numpy(text.tokens_NT)).last_hidden_state
    return states_NTD[torch.arange(text.tokens_NT.shape[1]) < torch.from_numpy(text.lengths_N)[:, None]]
