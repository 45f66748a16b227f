"""Which linears are kept finer: those whose rounding alone costs most, measured and told."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from potstill.core.durable import sha256_of_file
from potstill.core.errors import InputError, RecipeError
from potstill.core.trace import Trace
from potstill.model.activations import round_inputs
from potstill.model.weights import Weights
from potstill.quantize import sensitivity
from potstill.quantize.calibration import CalibrationText
from potstill.quantize.grids import dequantize, quantize_int4, quantize_int8
from potstill.quantize.sensitivity import sum_of_forward_kl
from potstill.quantize.settings import Gptq, Int4, Int8, Int8Channel, KeepSensitive, label_of
from potstill.quantize.stage import quantize_model

DEAR = ("model.layers.0.mlp.down_proj.weight", "model.layers.2.self_attn.o_proj.weight")


@pytest.fixture
def text():
    generator = np.random.default_rng(0)
    return CalibrationText(generator.integers(0, 400, (6, 32)), generator.integers(8, 33, 6))


@pytest.fixture(scope="module")
def lopsided(make_llama, tmp_path_factory):
    """A model in which two linears have one huge weight in every group, for inputs that are always zero.

    So the huge weights change nothing, but the others of their groups round to zero.
    """
    model = AutoModelForCausalLM.from_pretrained(make_llama("tied"))
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[::32] = 0
        model.model.layers[2].self_attn.v_proj.weight[::32] = 0
        for name in DEAR:
            model.get_parameter(name)[:, ::32] = 3.0
    directory = tmp_path_factory.mktemp("lopsided")
    model.save_pretrained(directory)
    return directory


def kl_with(directory, text, change):
    """Mean forward KL of the whole model, changed, from itself: the slow way, in float64."""
    exact, other = (AutoModelForCausalLM.from_pretrained(directory).eval() for _ in range(2))
    change(other)
    scored = torch.arange(text.tokens_NT.shape[1]) < torch.from_numpy(text.lengths_N)[:, None]
    with torch.no_grad():
        tokens = torch.from_numpy(text.tokens_NT)
        ours, theirs = (model(input_ids=tokens).logits[scored].double().log_softmax(-1) for model in (exact, other))
    return float(functional.kl_div(theirs, ours, log_target=True, reduction="sum") / scored.sum())


def rounded(name, quantize):
    def change(model):
        weight = model.get_parameter(name)
        with torch.no_grad():
            weight.copy_(torch.from_numpy(dequantize(quantize(weight.detach().numpy().copy()))))

    return change


def test_the_linears_made_sensitive_by_construction_are_kept_and_told(lopsided, text, tmp_path):
    events = []
    scheme = Int4(keep_sensitive=2)
    quantize_model(scheme, lopsided, tmp_path, Trace(listeners=[events.append]), text)
    weights = Weights(tmp_path)
    kept = [name for name in weights.names if not weights.is_coded(name) and len(weights.shape(name)) == 2]
    assert kept == sorted(DEAR)
    assert {weights.dtype(name) for name in kept} == {"float16"}
    told = json.loads((tmp_path / "sensitivity.json").read_text())
    assert len(told) == 3 * 7
    assert min(told[name] for name in DEAR) > 3 * max(kl for name, kl in told.items() if name not in DEAR)
    (table,) = [event["value"] for event in events if event["kind"] == "table"]
    assert [row["linear"] for row in table if row["kept"]] == sorted(DEAR, key=lambda name: -told[name])
    assert not [event for event in events if event["kind"] == "fallback"], "what was asked for is no fallback"


@pytest.mark.parametrize("name", [DEAR[0], "model.layers.1.self_attn.q_proj.weight"])
def test_what_is_measured_is_the_kl_of_the_whole_model_with_that_one_linear_rounded(lopsided, text, tmp_path, name):
    quantize_model(Int4(keep_sensitive=1), lopsided, tmp_path, Trace(), text)
    told = json.loads((tmp_path / "sensitivity.json").read_text())
    assert told[name] == pytest.approx(kl_with(lopsided, text, rounded(name, quantize_int4)), rel=1e-3)


def test_in_a_w8a8_scheme_rounded_activations_count_too(lopsided, text, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    scheme = Int8Channel(keep_sensitive=KeepSensitive(linears=3, dtype="int8"))
    quantize_model(scheme, lopsided, tmp_path, Trace(), text)
    told = json.loads((tmp_path / "sensitivity.json").read_text())

    def change(model):
        rounded(name, lambda weight: quantize_int8(weight, None))(model)
        round_inputs(model.get_submodule(name.removesuffix(".weight")))

    assert told[name] == pytest.approx(kl_with(lopsided, text, change), rel=1e-2)
    weights = Weights(tmp_path)
    dearest = sorted(told, key=told.get)[-3:]
    assert {weights.read_coded(one).scales_OG.shape[1] > 1 for one in dearest} == {True}
    assert not set(dearest) & set(weights.integer_products)


def test_a_killed_run_does_not_measure_again_and_ends_in_the_same_bytes(lopsided, text, tmp_path, monkeypatch):
    scheme = Int4(method=Gptq(), keep_sensitive=2)
    quantize_model(scheme, lopsided, tmp_path / "whole", Trace(), text)
    stopped = []

    def stop_once(*_arguments, **_named):
        stopped.append(1)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("potstill.quantize.stage.CalibratedBlocks.quantize", stop_once)
        with pytest.raises(KeyboardInterrupt):
            quantize_model(scheme, lopsided, tmp_path / "killed", Trace(), text)
    monkeypatch.setattr(sensitivity, "_Measurement", None)
    quantize_model(scheme, lopsided, tmp_path / "killed", Trace(), text)
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "killed").iterdir())
    for name in names:
        assert sha256_of_file(tmp_path / "whole" / name) == sha256_of_file(tmp_path / "killed" / name)


def test_gpt2_s_turned_linears_are_measured_too(tmp_path, text):
    config = GPT2Config(vocab_size=400, n_embd=64, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        model.transformer.h[1].ln_2.weight[::32] = 0
        model.transformer.h[1].mlp.c_fc.weight[::32] = 3.0
    model.save_pretrained(tmp_path / "model")
    quantize_model(Int4(keep_sensitive=1), tmp_path / "model", tmp_path / "out", Trace(), text)
    assert Weights(tmp_path / "out").dtype("transformer.h.1.mlp.c_fc.weight") == "float16"


def test_no_text_and_more_linears_than_there_are_are_refused(lopsided, text, tmp_path):
    with pytest.raises(InputError, match="no text to calibrate on"):
        quantize_model(Int4(keep_sensitive=2), lopsided, tmp_path / "a", Trace())
    with pytest.raises(RecipeError, match="21 linears are to be kept, and 21 are rounded at all"):
        quantize_model(Int4(keep_sensitive=21), lopsided, tmp_path / "b", Trace(), text)


def test_a_number_means_that_many_in_float16_and_the_label_tells_it():
    scheme = Int4.model_validate({"group": 128, "keep_sensitive": 2})
    assert scheme.keep_sensitive == KeepSensitive(linears=2)
    assert label_of(scheme) == "int4-g128-sensitive2"
    with pytest.raises(ValueError, match="int8 already"):
        Int8(keep_sensitive=KeepSensitive(linears=1, dtype="int8"))


def test_kl_in_parts_is_kl(monkeypatch):
    exact, other = torch.randn(2, 7, 11, dtype=torch.float64)
    expected = functional.kl_div(other.log_softmax(-1), exact.log_softmax(-1), log_target=True, reduction="sum")
    monkeypatch.setattr(sensitivity, "_LOGITS_AT_ONCE", 22)
    assert sum_of_forward_kl(exact, other) == pytest.approx(float(expected))
    assert sum_of_forward_kl(exact, exact) == 0.0
