"""ONNX folders: exact codes and scales, tied weights once, one spelling of the bytes, and refusals that say why."""

import json
import shutil
import sys
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from potstill.core.errors import InputError, ResourceError
from potstill.core.trace import Trace
from potstill.export import onnx_graph
from potstill.export.onnx import export_onnx
from potstill.export.onnx_linear import linear
from potstill.export.settings import OnnxExport
from potstill.export.stage import export_variants
from potstill.model.activations import rounded_per_token
from potstill.model.weights import CodedTensor, Weights
from potstill.quantize.settings import Float16, Int8Channel, Keep
from potstill.quantize.stage import quantize_model
from potstill.runtime.table import open_engine


def export(source, out, label="float32", **settings):
    export_onnx(OnnxExport(**settings), source, out, label, Trace())
    return {one.name: one for one in onnx.load(out / "model.onnx").graph.initializer}


def read_back(initializers, name, columns):
    """Codes and scales of a weight as they stand in the file."""
    codes = numpy_helper.to_array(initializers[f"{name}.codes"])
    scales_OG = numpy_helper.to_array(initializers[f"{name}.scales"])
    if codes.dtype == np.int8:
        return CodedTensor(codes, scales_OG)
    rows = codes.shape[0]
    if codes.size == rows * columns:
        return CodedTensor((codes.reshape(rows, columns).astype(np.int16) - 128).astype(np.int8), scales_OG)
    halves = np.stack([codes.reshape(rows, -1) & 15, codes.reshape(rows, -1) >> 4], axis=-1)
    return CodedTensor(halves.reshape(rows, columns).astype(np.int8) - 8, scales_OG, bits=4)


@pytest.mark.parametrize("activations", ["float32", "int8"])
@pytest.mark.parametrize(("bits", "group"), [(8, 32), (8, 0), (8, 128), (4, 32), (4, 128)])
@pytest.mark.parametrize("family", ["llama", "llama-gqa", "gpt2", "phi3"])
def test_codes_and_scales_are_written_bit_for_bit(
    make_family, make_quantized, tmp_path, family, bits, group, activations
):
    source = make_quantized(make_family(family), bits, group)
    written = export(source, tmp_path / "m.onnx", f"int{bits}", activations=activations)
    weights = Weights(source)
    coded = [name for name in weights.names if weights.is_coded(name)]
    assert len(coded) >= 3 * 4
    for name in coded:
        chosen = weights.read_coded(name)
        found = read_back(written, name, chosen.codes_OI.shape[1])
        np.testing.assert_array_equal(found.codes_OI, chosen.codes_OI)
        np.testing.assert_array_equal(found.scales_OG, chosen.scales_OG)
        assert found.scales_OG.dtype == np.float16


def test_rows_of_a_weight_kept_head_by_head_are_only_put_in_order(make_family, make_quantized, tmp_path):
    """GPT-NeoX: q, k and v of a head follow each other in its file, all of q come first in ours."""
    source = make_quantized(make_family("gpt_neox"), 8, 32)
    written = export(source, tmp_path / "m.onnx")
    name = "gpt_neox.layers.1.attention.query_key_value.weight"
    chosen = Weights(source).read_coded(name)
    found = read_back(written, name, 128)
    by_head = chosen.codes_OI.reshape(4, 3, 32, 128)
    np.testing.assert_array_equal(found.codes_OI.reshape(3, 4, 32, 128), by_head.swapaxes(0, 1))
    np.testing.assert_array_equal(
        found.scales_OG.reshape(3, 4, 32, 4), chosen.scales_OG.reshape(4, 3, 32, 4).swapaxes(0, 1)
    )


def products(folder):
    """How many nodes of each kind multiply."""
    kinds = Counter(node.op_type for node in onnx.load(folder / "model.onnx").graph.node)
    return {kind: kinds[kind] for kind in ("MatMulNBits", "MatMulInteger", "MatMul") if kinds[kind]}


@pytest.mark.parametrize(
    ("group", "expected"),
    [(32, {"MatMulNBits": 3 * 7 + 1}), (0, {"MatMulInteger": 3 * 7, "MatMul": 1})],
)
def test_rows_of_32_columns_are_one_group_or_one_scale_per_row_as_the_scheme_says(
    make_family, make_quantized, tmp_path, group, expected
):
    """Codes and scales have the same shapes in both; only W8A8 rounds activations per token, and not the head's."""
    source = make_quantized(make_family("narrow"), 8, group)
    assert Weights(source).read_coded("model.layers.0.mlp.up_proj.weight").scales_OG.shape == (256, 1)
    export(source, tmp_path / "m.onnx", "int8")
    assert products(tmp_path / "m.onnx") == expected


def test_what_a_w8a8_scheme_keeps_finer_is_in_groups_even_where_a_row_is_one_group(make_family, tmp_path):
    keep = (Keep(tensors="*.up_proj.weight", dtype="int8"), Keep(tensors="*.0.mlp.gate_proj.weight"))
    quantize_model(Int8Channel(keep=keep), make_family("narrow"), tmp_path / "kept", Trace())
    weights = Weights(tmp_path / "kept")
    assert len(weights.integer_products) == 3 * 7 - 4
    assert not any("up_proj" in name for name in weights.integer_products)
    export(tmp_path / "kept", tmp_path / "m.onnx", "int8-channel")
    assert products(tmp_path / "m.onnx") == {"MatMulNBits": 3, "MatMulInteger": 3 * 7 - 4, "MatMul": 2}


@pytest.mark.parametrize(("dtype", "type_"), [("float32", TensorProto.FLOAT), ("bfloat16", TensorProto.BFLOAT16)])
def test_floats_are_written_as_they_are(make_family, tmp_path, dtype, type_):
    source = tmp_path / "source"
    shutil.copytree(make_family("llama"), source)
    weights = Weights(source)
    wanted = {name: weights.read(name).to(getattr(torch, dtype)) for name in weights.names}
    save_torch(wanted, source / "model.safetensors", metadata={"format": "pt"})
    written = export(source, tmp_path / "m.onnx", dtype)
    for name, tensor in wanted.items():
        if tensor.ndim != 2:
            continue
        found = written[name]
        assert found.data_type == type_
        raw = torch.frombuffer(bytearray(found.raw_data), dtype=tensor.dtype).reshape(tuple(found.dims))
        turned = tensor if "embed" in name else tensor.T
        assert torch.equal(raw, turned), name


def test_float16_folders_are_half_as_large(make_family, tmp_path):
    quantize_model(Float16(), make_family("llama"), tmp_path / "half", Trace())
    export(make_family("llama"), tmp_path / "whole.onnx")
    export(tmp_path / "half", tmp_path / "half.onnx", "float16")
    sizes = [(tmp_path / name / "model.onnx").stat().st_size for name in ("half.onnx", "whole.onnx")]
    assert 0.49 < sizes[0] / sizes[1] < 0.55


@pytest.mark.parametrize(("bits", "group"), [(8, 32), (8, 0), (4, 32)])
def test_a_tied_embedding_stands_in_the_file_once(make_family, make_quantized, tmp_path, bits, group):
    source = make_quantized(make_family("llama"), bits, group)
    written = export(source, tmp_path / "m.onnx", f"int{bits}")
    codes_bytes = 400 * 128 * bits // 8
    assert sum(len(one.raw_data) == codes_bytes for one in written.values()) == 1
    assert not any("lm_head" in name for name in written)


def test_the_same_model_gives_the_same_bytes(make_family, tmp_path):
    for name in ("a.onnx", "b.onnx"):
        export(make_family("qwen3"), tmp_path / name)
    assert (tmp_path / "a.onnx/model.onnx").read_bytes() == (tmp_path / "b.onnx/model.onnx").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


def test_config_and_tokenizer_come_along(make_family, tmp_path):
    export(make_family("llama"), tmp_path / "m.onnx")
    names = {path.name for path in (tmp_path / "m.onnx").iterdir()}
    assert names >= {"model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"}


def test_large_weights_stand_in_a_file_of_their_own(make_family, make_quantized, tmp_path, monkeypatch):
    """The same numbers, and the model's own file small."""
    source = make_quantized(make_family("llama-gqa"), 4, 32)
    export(source, tmp_path / "one.onnx")
    monkeypatch.setattr(onnx_graph, "EXTERNAL_FROM_BYTES", 1)
    export(source, tmp_path / "two.onnx")
    assert (tmp_path / "two.onnx/model.onnx").stat().st_size < 40_000
    tokens_BT = np.arange(20)[None]
    with open_engine(tmp_path / "one.onnx", threads=1) as one, open_engine(tmp_path / "two.onnx", threads=1) as two:
        np.testing.assert_array_equal(one.logits(tokens_BT), two.logits(tokens_BT))
        assert 0 <= two.facts.file_bytes - one.facts.file_bytes < 20_000


def changed(source, tmp_path, tensors=None, **config):
    copy = tmp_path / "changed"
    shutil.copytree(source, copy)
    content = json.loads((copy / "config.json").read_text()) | config
    (copy / "config.json").write_text(json.dumps(content))
    if tensors:
        save_file(tensors(load_file(copy / "model.safetensors")), copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, r"family 'mamba' can't be exported(.|\n)*supported: llama, mistral"),
        ({"hidden_act": "relu2"}, "activation 'relu2'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "stretched by 'yarn'"),
        ({"attn_logit_softcapping": 50.0}, "caps the scores"),
        ({"head_dim": 20}, "heads of 20 columns"),
        ({"tensors": lambda all_: all_ | {"model.layers.0.extra.weight": np.zeros(3, np.float32)}}, "extra.weight"),
        (
            {"tensors": lambda all_: {name: one for name, one in all_.items() if "1.mlp.up" not in name}},
            r"layers\.1\.mlp\.up_proj\.weight is missing",
        ),
    ],
)
def test_what_cannot_be_computed_is_refused_and_leaves_nothing(make_family, tmp_path, change, message):
    source = changed(make_family("llama"), tmp_path, **change)
    with pytest.raises(InputError, match=message):
        export(source, tmp_path / "out" / "m.onnx")
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_without_the_extra_the_error_names_it(make_family, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    for name in [name for name in sys.modules if name.startswith("potstill.export.onnx")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ResourceError, match=r"pip install 'potstill\[onnx\]'"):
        export_variants([OnnxExport()], {"student-float32": make_family("llama")}, tmp_path, Trace())


def test_what_a_killed_try_left_is_removed(make_family, tmp_path):
    (tmp_path / ".student-float32.onnx.01234567.partial").mkdir()
    (tmp_path / ".student-float32.onnx.01234567.partial" / "model.onnx").write_bytes(b"half")
    export_variants([OnnxExport()], {"student-float32": make_family("llama")}, tmp_path, Trace())
    assert [path.name for path in tmp_path.iterdir()] == ["student-float32.onnx"]


@pytest.mark.parametrize("columns", [32, 172, 1024])
def test_a_w8a8_product_is_exact_in_integers_and_saturates_nowhere(tmp_path, columns):
    """Extreme codes in long rows included, the product is that of float64 on the same codes, to float32 rounding."""
    generator = np.random.default_rng(0)
    codes_OI = generator.integers(-127, 128, (48, columns)).astype(np.int8)
    codes_OI[0], codes_OI[1] = 127, -127
    scales_OG = generator.uniform(0.001, 0.002, (48, 1)).astype(np.float16)
    inputs_BTI = generator.normal(size=(2, 9, columns)).astype(np.float32)
    inputs_BTI[0, 0], inputs_BTI[0, 1], inputs_BTI[0, 2] = 1.0, -1.0, 0.0
    graph = onnx_graph.OnnxGraph()
    given = graph.input("x", TensorProto.FLOAT, ["batch", "tokens", columns])
    weight = CodedTensor(codes_OI, scales_OG, per_row=True)
    graph.output(linear(graph, "w", given, weight, "int8"), "y", TensorProto.FLOAT, ["batch", "tokens", 48])
    graph.write(tmp_path / "m.onnx", {})
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (found_BTO,) = session.run(["y"], {"x": inputs_BTI})
    rounded_BTI = rounded_per_token(torch.from_numpy(inputs_BTI)).double().numpy()
    expected_BTO = rounded_BTI @ (codes_OI.astype(np.float64) * scales_OG.astype(np.float64)).T
    np.testing.assert_allclose(found_BTO, expected_BTO, rtol=1e-5, atol=1e-6 * np.abs(expected_BTO).max())
