"""OpenVINO folders: exact codes and scales, tied weights once, one spelling of the bytes, a tokenizer beside."""

import sys

import numpy as np
import openvino
import pytest

from potstill.core.errors import InputError, ResourceError
from potstill.core.trace import Trace
from potstill.export.openvino import export_openvino
from potstill.export.settings import OpenvinoExport
from potstill.export.stage import export_variants
from potstill.model.weights import Weights
from potstill.quantize.settings import Float16
from potstill.quantize.stage import quantize_model


def export(source, out, label="float32", **settings):
    export_openvino(OpenvinoExport(**settings), source, out, label, Trace())
    model = openvino.Core().read_model(out / "openvino_model.xml")
    return {one.get_friendly_name(): one for one in model.get_ordered_ops() if one.get_type_name() == "Constant"}


def codes_of(constant, rows):
    """Codes of a constant as the file has them: i4 two to a byte in two's complement, i8 one to a byte."""
    if constant.get_element_type() == openvino.Type.i8:
        return constant.data.reshape(rows, -1)
    assert constant.get_element_type() == openvino.Type.i4
    packed = constant.data.reshape(-1).view(np.uint8)
    halves = np.stack([packed & 15, packed >> 4], axis=-1).reshape(rows, -1).astype(np.int8)
    return np.where(halves > 7, halves - 16, halves)


@pytest.mark.parametrize(("bits", "group"), [(8, 32), (8, 0), (4, 32), (4, 128)])
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_codes_and_scales_are_written_bit_for_bit(make_family, make_quantized, tmp_path, family, bits, group):
    source = make_quantized(make_family(family), bits, group)
    written = export(source, tmp_path / "m.openvino", f"int{bits}")
    weights = Weights(source)
    coded = [name for name in weights.names if weights.is_coded(name)]
    assert len(coded) >= 3 * 4
    for name in coded:
        chosen = weights.read_coded(name)
        scales = written[f"{name}.scales"].data
        np.testing.assert_array_equal(codes_of(written[f"{name}.codes"], len(chosen.codes_OI)), chosen.codes_OI)
        assert scales.dtype == np.float16
        np.testing.assert_array_equal(scales.reshape(chosen.scales_OG.shape), chosen.scales_OG)


def test_a_tied_embedding_stands_in_the_file_once(make_family, make_quantized, tmp_path):
    written = export(make_quantized(make_family("llama"), 4, 32), tmp_path / "m.openvino")
    assert sum(name.endswith("embed_tokens.weight.codes") for name in written) == 1
    assert not any("lm_head" in name for name in written)


def test_float16_folders_are_half_as_large(make_family, tmp_path):
    quantize_model(Float16(), make_family("llama"), tmp_path / "half", Trace())
    export(make_family("llama"), tmp_path / "whole.openvino")
    export(tmp_path / "half", tmp_path / "half.openvino", "float16")
    sizes = [(tmp_path / name / "openvino_model.bin").stat().st_size for name in ("half.openvino", "whole.openvino")]
    assert 0.49 < sizes[0] / sizes[1] < 0.55


def test_the_same_model_gives_the_same_bytes(make_family, tmp_path):
    for name in ("a.openvino", "b.openvino"):
        export(make_family("qwen3"), tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a.openvino").iterdir())
    assert {"openvino_tokenizer.xml", "openvino_detokenizer.xml", "config.json", "tokenizer.json"} < set(files)
    for name in files:
        assert (tmp_path / "a.openvino" / name).read_bytes() == (tmp_path / "b.openvino" / name).read_bytes(), name


@pytest.mark.parametrize(("activations", "size"), [("float32", "0"), ("int8", "32")])
def test_what_the_runtime_may_round_stands_in_the_model(make_family, tmp_path, activations, size):
    export(make_family("llama"), tmp_path / "m.openvino", activations=activations)
    model = openvino.Core().read_model(tmp_path / "m.openvino" / "openvino_model.xml")
    told = {
        key: model.get_rt_info(["runtime_options", key]).value for key in model.get_rt_info("runtime_options").value
    }
    assert told == {"DYNAMIC_QUANTIZATION_GROUP_SIZE": size, "KV_CACHE_PRECISION": "f32"}


def test_a_folder_without_a_tokenizer_is_warned_of(make_family, make_quantized, tmp_path):
    source = make_quantized(make_family("mistral"), 8, 32)
    (source / "tokenizer.json").unlink()
    events = []
    export_openvino(OpenvinoExport(), source, tmp_path / "m.openvino", "int8", Trace(listeners=[events.append]))
    assert [event["value"] for event in events if event["kind"] == "warning"] == [
        "m.openvino: no tokenizer.json, so openvino_genai finds no tokenizer beside the model"
    ]


def test_a_tensor_that_no_table_knows_leaves_nothing(make_family, tmp_path, monkeypatch):
    monkeypatch.setattr(Weights, "names", property(lambda self: [*self._file_of, "model.extra.weight"]))
    with pytest.raises(InputError, match=r"model\.extra\.weight: is a tensor that potstill's table of llama"):
        export(make_family("llama"), tmp_path / "m.openvino")
    assert not list(tmp_path.iterdir())


def test_without_the_extra_the_error_names_it(make_family, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    for name in [name for name in sys.modules if name.startswith("potstill.export.openvino")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ResourceError, match=r"pip install 'potstill\[openvino\]'"):
        export_variants([OpenvinoExport()], {"student-float32": make_family("llama")}, tmp_path, Trace())
