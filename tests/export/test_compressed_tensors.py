"""compressed-tensors directories: exact codes and scales in its own packing, and a configuration that is true."""

import json
import sys
import weakref

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationConfig
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from potstill.core.errors import InputError, ResourceError
from potstill.core.trace import Trace
from potstill.export.compressed_tensors import export_compressed_tensors, pack_int32, unpack_int32
from potstill.export.settings import CompressedTensorsExport
from potstill.model.weights import Weights, dequantize
from potstill.runtime.table import open_engine


def export(source, out, events=None):
    listeners = [] if events is None else [events.append]
    export_compressed_tensors(CompressedTensorsExport(), source, out, "int4", Trace(listeners=listeners))
    config = json.loads((out / "config.json").read_text())
    return load_file(out / "model.safetensors"), config.get("quantization_config")


@given(rows=st.integers(1, 5), columns=st.integers(1, 80), bits=st.sampled_from([4, 8]), seed=st.integers(0, 99))
def test_packing_is_that_of_the_package_and_is_undone(rows, columns, bits, seed):
    half = 1 << (bits - 1)
    codes_OI = np.random.default_rng(seed).integers(-half, half, (rows, columns)).astype(np.int8)
    packed_OW = pack_int32(codes_OI, bits)
    np.testing.assert_array_equal(packed_OW, pack_to_int32(torch.from_numpy(codes_OI), bits).numpy())
    np.testing.assert_array_equal(unpack_int32(packed_OW, bits, columns), codes_OI)


@pytest.mark.parametrize(("bits", "group"), [(8, 32), (8, 0), (4, 32), (4, 128)])
@pytest.mark.parametrize("family", ["llama", "phi3", "gpt_neox"])
def test_codes_and_scales_are_written_bit_for_bit(make_family, make_quantized, tmp_path, family, bits, group):
    source = make_quantized(make_family(family), bits, group)
    written, _ = export(source, tmp_path / "m")
    weights = Weights(source)
    in_blocks = [name for name in weights.names if weights.is_coded(name) and ".layers." in name]
    assert len(in_blocks) >= 3 * 4
    for name in in_blocks:
        chosen = weights.read_coded(name)
        if group:
            columns = chosen.codes_OI.shape[1]
            codes_OI = unpack_int32(written[f"{name}_packed"].numpy(), bits, columns)
            assert written[f"{name}_shape"].tolist() == list(chosen.codes_OI.shape)
        else:
            codes_OI = written[name].numpy()
        np.testing.assert_array_equal(codes_OI, chosen.codes_OI)
        np.testing.assert_array_equal(written[f"{name}_scale"].numpy(), chosen.scales_OG)


def test_embeddings_are_floats_that_hold_codes_times_scales_exactly_and_the_trace_says_so(
    make_family, make_quantized, tmp_path
):
    source = make_quantized(make_family("llama"), 4, 32)
    events = []
    written, _ = export(source, tmp_path / "m", events)
    name = "model.embed_tokens.weight"
    np.testing.assert_array_equal(written[name].numpy(), dequantize(Weights(source).read_coded(name)))
    told = [event["value"] for event in events if event["kind"] == "fallback"]
    assert told == [f"{name} stands in float32: transformers reads no embeddings as codes"]


@pytest.mark.parametrize(("bits", "group"), [(8, 32), (8, 0), (4, 128)])
@pytest.mark.parametrize("family", ["llama-gqa", "gpt_neox"])
def test_a_head_of_its_own_stands_as_codes_and_its_activations_are_never_rounded(
    make_family, make_quantized, tmp_path, family, bits, group
):
    source = make_quantized(make_family(family), bits, group)
    events = []
    written, told = export(source, tmp_path / "m", events)
    name = {"llama-gqa": "lm_head.weight", "gpt_neox": "embed_out.weight"}[family]
    target = {"llama-gqa": "lm_head", "gpt_neox": "re:(lm_head|embed_out)$"}[family]
    chosen = Weights(source).read_coded(name)
    codes_OI = unpack_int32(written[f"{name}_packed"].numpy(), bits, 128)
    np.testing.assert_array_equal(codes_OI, chosen.codes_OI)
    np.testing.assert_array_equal(written[f"{name}_scale"].numpy(), chosen.scales_OG)
    assert told["ignore"] == []
    rounded = {entry["targets"][0]: entry["input_activations"] is not None for entry in told["config_groups"].values()}
    assert rounded == ({"Linear": False} if group else {"Linear": True, target: False})
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    model(input_ids=torch.zeros(1, 1, dtype=torch.int64))
    np.testing.assert_array_equal(model.lm_head.weight.detach().numpy(), dequantize(chosen))
    assert [event["value"] for event in events if event["kind"] == "fallback"] != []


def test_no_more_than_a_tensor_is_in_memory(make_family, make_quantized, tmp_path, monkeypatch):
    """Every tensor is read when its turn comes, and let go before the next one."""
    source = make_quantized(make_family("llama-gqa"), 4, 32)
    alive, most = [], []
    read_coded = Weights.read_coded

    def watched(self, name):
        coded = read_coded(self, name)
        alive.append(weakref.ref(coded.codes_OI))
        most.append(sum(one() is not None for one in alive))
        return coded

    monkeypatch.setattr(Weights, "read_coded", watched)
    export(source, tmp_path / "m")
    assert len(most) > 3 * 3 * 7
    assert max(most) <= 2, "the one that was read, and the one before until its name is taken"


def test_weights_that_the_scheme_left_alone_are_named_in_ignore(make_family, make_quantized, tmp_path):
    """Columns of 172 aren't in groups of 32: those linears stay floats, and nobody looks for codes there."""
    source = make_quantized(make_family("odd"), 4, 32)
    _, told = export(source, tmp_path / "m")
    assert told["ignore"] == [*(f"model.layers.{block}.mlp.down_proj" for block in range(3))]
    assert told["config_groups"]["group_0"]["targets"] == ["Linear"]


@pytest.mark.parametrize(("bits", "group"), [(8, 0), (4, 128)])
def test_the_configuration_is_one_that_the_package_accepts(make_family, make_quantized, tmp_path, bits, group):
    _, told = export(make_quantized(make_family("llama"), bits, group), tmp_path / "m")
    parsed = QuantizationConfig.model_validate({key: one for key, one in told.items() if key != "quant_method"})
    scheme = parsed.config_groups["group_0"]
    assert (scheme.weights.num_bits, scheme.weights.group_size) == (bits, group or None)
    assert (scheme.input_activations is None) == bool(group)
    assert told["format"] == ("pack-quantized" if group else "int-quantized")


@pytest.mark.parametrize(("group", "strategy"), [(32, "group"), (0, "channel")])
def test_rows_of_32_columns_are_one_group_or_one_scale_per_row_as_the_scheme_says(
    make_family, make_quantized, tmp_path, group, strategy
):
    written, told = export(make_quantized(make_family("narrow"), 8, group), tmp_path / "m")
    (entry,) = told["config_groups"].values()
    assert (entry["weights"]["strategy"], entry["input_activations"] is None) == (strategy, bool(group))
    assert written["model.layers.0.mlp.up_proj.weight_scale"].shape == (256, 1)


def test_transformers_alone_loads_it(make_family, make_quantized, tmp_path):
    """No part of potstill between: the weights that from_pretrained gives are codes times scales, to the bit."""
    source = make_quantized(make_family("qwen2"), 4, 32)
    export(source, tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    model(input_ids=torch.zeros(1, 1, dtype=torch.int64))
    weights = Weights(source)
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.2.mlp.down_proj.weight"):
        np.testing.assert_array_equal(model.get_parameter(name).detach().numpy(), dequantize(weights.read_coded(name)))


def test_conv1d_is_refused(make_family, make_quantized, tmp_path):
    with pytest.raises(InputError, match="gpt2 keeps its weights in Conv1D"):
        export(make_quantized(make_family("gpt2"), 8, 32), tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_an_engine_says_what_it_opened_and_nothing_else(make_family, make_quantized, tmp_path, capfd):
    source = make_quantized(make_family("llama"), 4, 32)
    export(source, tmp_path / "student-int4.compressed-tensors")
    with open_engine(tmp_path / "student-int4.compressed-tensors", threads=1) as engine:
        facts = engine.facts
        engine.generate([1, 2], 3)
    assert (facts.name, facts.format, facts.engine) == ("student-int4", "compressed-tensors", "pytorch")
    assert (facts.dtype, facts.parameters) == ("int4", Weights(source).num_parameters())
    assert capfd.readouterr().err == ""


def test_without_the_package_the_error_names_the_extra(make_family, make_quantized, tmp_path, monkeypatch):
    export(make_quantized(make_family("llama"), 4, 32), tmp_path / "m")
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    with pytest.raises(ResourceError, match=r"pip install 'potstill\[compressed-tensors\]'"):
        open_engine(tmp_path / "m", threads=1)
