"""Quantized directories: what stands in them, that transformers loads them, and that they are the same every time."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from potstill.core.durable import sha256_of_file
from potstill.core.errors import InputError
from potstill.core.trace import Trace
from potstill.model.weights import Weights
from potstill.quantize.grids import CodedTensor, dequantize, quantize_int8
from potstill.quantize.parts import WorkSoFar
from potstill.quantize.settings import Bfloat16, Float16, Int4, Int8, Int8Channel, Keep, KQuant2, KQuant3
from potstill.quantize.stage import load_quantized, quantize_model


@pytest.fixture
def events():
    return []


@pytest.fixture
def trace(events):
    return Trace(listeners=[events.append])


def test_float16_is_an_ordinary_directory_of_rounded_weights(make_llama, tmp_path, trace):
    source = make_llama("tied")
    quantize_model(Float16(), source, tmp_path / "half", trace)
    exact = load_file(source / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert model.dtype == torch.float16
    for name, half in model.state_dict().items():
        if name in exact:
            np.testing.assert_array_equal(half.numpy(), exact[name].astype(np.float16))
    assert AutoTokenizer.from_pretrained(tmp_path / "half")("A copy").input_ids
    assert "lm_head.weight" not in load_file(tmp_path / "half" / "model.safetensors")


@pytest.mark.parametrize("tied", [True, False])
def test_int8_quantizes_embeddings_and_linears_and_keeps_norms(make_llama, tmp_path, trace, tied):
    source = make_llama(
        "tied" if tied else "untied-gqa", **({} if tied else {"tie_word_embeddings": False, "num_key_value_heads": 2})
    )
    quantize_model(Int8(), source, tmp_path, trace)
    exact, stored = load_file(source / "model.safetensors"), load_file(tmp_path / "quantized.safetensors")
    for name, weight in exact.items():
        if weight.ndim == 1:
            np.testing.assert_array_equal(stored[name], weight)
            assert stored[name].dtype == np.float32
        else:
            expected = quantize_int8(weight)
            np.testing.assert_array_equal(stored[name + ".codes"], expected.codes_OI)
            np.testing.assert_array_equal(stored[name + ".scales"], expected.scales_OG)
    assert ("lm_head.weight.codes" in stored) == (not tied)
    with safe_open(tmp_path / "quantized.safetensors", framework="np") as file:
        assert json.loads(file.metadata()["scheme"]) == Int8().model_dump(mode="json")


def test_a_loaded_int8_model_has_exactly_the_dequantized_weights(make_llama, tmp_path, trace):
    quantize_model(Int8(), make_llama("tied"), tmp_path, trace)
    before = torch.random.get_rng_state()
    model = load_quantized(tmp_path)
    assert torch.equal(before, torch.random.get_rng_state()), "loading draws no random numbers from the caller"
    stored = load_file(tmp_path / "quantized.safetensors")
    for name, weight in model.named_parameters():
        if name + ".codes" in stored:
            coded = CodedTensor(stored[name + ".codes"], stored[name + ".scales"])
            np.testing.assert_array_equal(weight.detach().numpy(), dequantize(coded))
        else:
            np.testing.assert_array_equal(weight.detach().numpy(), stored[name])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not model.training


def test_columns_that_are_no_multiple_of_32_stay_float16_and_the_trace_says_so(make_llama, tmp_path, trace, events):
    source = make_llama("odd", intermediate_size=100)
    quantize_model(Int8(), source, tmp_path, trace)
    stored = load_file(tmp_path / "quantized.safetensors")
    assert stored["model.layers.0.mlp.down_proj.weight"].dtype == np.float16
    fallbacks = [event["value"] for event in events if event["kind"] == "fallback"]
    assert len(fallbacks) == 3
    assert "down_proj.weight has 100 columns" in fallbacks[0]


def test_the_trace_shows_shapes_bytes_and_the_relative_error(make_llama, tmp_path, trace, events):
    quantize_model(Int8(), make_llama("tied"), tmp_path, trace)
    metrics = {event["name"]: event["value"] for event in events if event["kind"] == "metric"}
    assert 0.003 < metrics["weight_error_relative"] < 0.02
    assert metrics["weights_bytes_after"] < 0.28 * metrics["weights_bytes_before"]
    (given,) = [event["value"] for event in events if event["kind"] == "input"]
    assert given["dtype"] == "float32"
    assert given["shape"] == [654_208]
    assert {event["name"] for event in events if event["kind"] == "output"} == {"codes", "scales"}


@pytest.mark.parametrize("scheme", [Float16(), Bfloat16(), Int8(), Int8Channel(), Int4(group=128), KQuant3()])
def test_the_same_model_gives_the_same_bytes_over_what_a_killed_try_left(make_llama, tmp_path, trace, scheme):
    source = make_llama("tied")
    again = tmp_path / "again"
    again.mkdir()
    (again / ".quantized.safetensors.0123abcd.partial").write_bytes(b"half")
    (again / "config.json").write_text("{")
    for out in (tmp_path / "once", again):
        quantize_model(scheme, source, out, trace)
    names = sorted(path.name for path in (tmp_path / "once").iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    assert [sha256_of_file(tmp_path / "once" / name) for name in names] == [
        sha256_of_file(again / name) for name in names
    ]


def test_a_quantized_directory_is_not_quantized_again(make_llama, tmp_path, trace):
    quantize_model(Int8(), make_llama("tied"), tmp_path / "int8", trace)
    with pytest.raises(InputError, match="is quantized already"):
        quantize_model(Int8(), tmp_path / "int8", tmp_path / "twice", trace)


def test_a_model_with_nan_is_refused_by_the_name_of_its_tensor(make_llama, tmp_path, trace):
    model = AutoModelForCausalLM.from_pretrained(make_llama("tied"))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = torch.nan
    model.save_pretrained(tmp_path / "nan")
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj\.weight: 1 weights are NaN"):
        quantize_model(Int8(), tmp_path / "nan", tmp_path / "out", trace)


def test_a_damaged_quantized_directory_says_so(make_llama, tmp_path, trace):
    quantize_model(Int8(), make_llama("tied"), tmp_path, trace)
    whole = (tmp_path / "quantized.safetensors").read_bytes()
    (tmp_path / "quantized.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is no safetensors file"):
        load_quantized(tmp_path)


def test_bfloat16_is_an_ordinary_directory_too(make_llama, tmp_path, trace):
    source = make_llama("tied")
    quantize_model(Bfloat16(), source, tmp_path, trace)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.bfloat16
    for name, exact in load_file(source / "model.safetensors").items():
        assert torch.equal(model.state_dict()[name], torch.from_numpy(exact).bfloat16())


def test_kept_tensors_stay_finer_and_everything_reads_back(make_llama, tmp_path, trace, events):
    source = make_llama("tied")
    keep = (Keep(tensors="model.embed_tokens.weight", dtype="int8"), Keep(tensors="*.0.mlp.down_proj.weight"))
    quantize_model(Int4(keep=keep), source, tmp_path, trace)
    weights = Weights(tmp_path)
    assert weights.read_coded("model.embed_tokens.weight").bits == 8
    assert weights.read_coded("model.layers.0.mlp.up_proj.weight").bits == 4
    assert weights.dtype("model.layers.0.mlp.down_proj.weight") == "float16"
    assert weights.read_coded("model.layers.1.mlp.down_proj.weight").bits == 4
    assert not [event for event in events if event["kind"] == "fallback"]


@pytest.mark.parametrize(("scheme", "largest_error"), [(KQuant3(), 0.2), (KQuant2(), 0.35)])
def test_k_quants_are_llama_cpp_s_blocks_and_narrow_matrices_are_int4(
    make_llama, tmp_path, trace, events, scheme, largest_error
):
    source = make_llama("wide", hidden_size=256, intermediate_size=352)
    quantize_model(scheme, source, tmp_path, trace)
    weights, exact = Weights(tmp_path), load_file(source / "model.safetensors")
    up, down = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"
    assert weights.blocks_grid(up) == scheme.scheme
    assert weights.shape(up) == (352, 256)
    assert weights.read_coded(down).bits == 4
    fallbacks = [event["value"] for event in events if event["kind"] == "fallback"]
    assert len(fallbacks) == 3
    assert "352 columns, no multiple of 256: kept in int4 in groups of 32" in fallbacks[0]
    error = np.linalg.norm(weights.read(up).numpy() - exact[up]) / np.linalg.norm(exact[up])
    assert error < largest_error
    assert load_quantized(tmp_path).state_dict()[up].shape == (352, 256)


def test_gpt2_is_quantized_along_the_inputs_of_its_linears(tmp_path, trace):
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=64, n_head=2, vocab_size=128, n_positions=32))
    model.save_pretrained(tmp_path / "gpt2")
    quantize_model(Int8(), tmp_path / "gpt2", tmp_path / "int8", trace)
    weights = Weights(tmp_path / "int8")
    name = "transformer.h.0.attn.c_attn.weight"
    expected = quantize_int8(np.ascontiguousarray(model.state_dict()[name].numpy().T))
    np.testing.assert_array_equal(weights.read_coded(name).codes_OI, expected.codes_OI)
    np.testing.assert_array_equal(weights.read(name).numpy(), dequantize(expected).T)
    assert weights.dtype("transformer.wpe.weight") == "float32"
    assert load_quantized(tmp_path / "int8").config.model_type == "gpt2"


def test_a_norm_with_nan_is_refused_too(make_llama, tmp_path, trace):
    model = AutoModelForCausalLM.from_pretrained(make_llama("tied"))
    with torch.no_grad():
        model.model.norm.weight[3] = torch.nan
    model.save_pretrained(tmp_path / "nan")
    with pytest.raises(InputError, match=r"model\.norm\.weight: 1 weights are NaN"):
        quantize_model(Int4(), tmp_path / "nan", tmp_path / "out", trace)


def test_what_was_done_for_another_scheme_or_model_is_thrown_away(make_llama, tmp_path, trace, monkeypatch):
    """A stop after the second part leaves its parts behind; only the very same work goes on from them."""
    source = make_llama("tied")
    quantize_model(Int4(), source, tmp_path / "whole", trace)

    finish, seen = WorkSoFar.finish, []

    def stop_at_the_third(self, part, entries, facts):
        seen.append(part.name)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return finish(self, part, entries, facts)

    monkeypatch.setattr(WorkSoFar, "finish", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        quantize_model(Int8(), source, tmp_path / "out", trace)
    assert len(list((tmp_path / "out" / "parts").glob("*.safetensors"))) == 2
    quantize_model(Int4(), source, tmp_path / "out", trace)
    assert sha256_of_file(tmp_path / "out" / "quantized.safetensors") == sha256_of_file(
        tmp_path / "whole" / "quantized.safetensors"
    )
    assert not (tmp_path / "out" / "parts").exists()
