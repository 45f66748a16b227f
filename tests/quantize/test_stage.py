"""Quantized directories: what stands in them, that transformers loads them, and that they are the same every time."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from potstill.core.durable import sha256_of_file
from potstill.core.errors import InputError
from potstill.core.trace import Trace
from potstill.quantize.grids import CodedTensor, dequantize, quantize_int8
from potstill.quantize.settings import Float16, Int8
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
        assert json.loads(file.metadata()["scheme"]) == {"scheme": "int8", "group": 32}


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


@pytest.mark.parametrize("scheme", [Float16(), Int8()])
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
