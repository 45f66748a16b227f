"""How does a model directory become an OpenVINO folder that its runtime and ``openvino_genai`` load?

Out come ``openvino_model.xml`` and ``.bin``; the tokenizer as models of their own, where ``openvino_tokenizers`` is
installed; config and tokenizer as they were.
"""

import re
from pathlib import Path
from typing import Any

import openvino

from potstill.core.trace import Trace
from potstill.export.decoder import build_decoder
from potstill.export.folder import copy_companions, folder_bytes, replacing_folder
from potstill.export.openvino_ops import OpenvinoOps
from potstill.export.parts import Parts, tell_activations
from potstill.export.settings import OpenvinoExport
from potstill.model.weights import Weights

__all__ = ["export_openvino"]

_MODEL, _WEIGHTS = "openvino_model.xml", "openvino_model.bin"


def export_openvino(settings: OpenvinoExport, source_dir: Path, out_dir: Path, label: str, trace: Trace) -> None:
    """Write a model as OpenVINO IR that keeps its cache itself; tied embeddings once, codes, scales and floats as is.

    What the runtime may round stands in the model: its cache is float32, and activations are rounded to int8 only where
    ``settings`` says so.

    Raises: InputError: a family or a tensor that potstill's table doesn't know.
    """
    weights = Weights(source_dir)
    parts = Parts(weights)
    ops = OpenvinoOps(parts.facts)
    model = ops.model(build_decoder(parts, ops))
    options = {
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32" if settings.activations == "int8" else "0",
        "KV_CACHE_PRECISION": "f32",
    }
    for key, value in options.items():
        model.set_rt_info(value, ["runtime_options", key])
    model.set_rt_info(label.partition("-")[0], ["potstill", "dtype"])
    model.set_rt_info(str(weights.num_parameters()), ["potstill", "parameters"])
    with replacing_folder(out_dir) as temporary:
        openvino.serialize(model, temporary / _MODEL, temporary / _WEIGHTS)
        copy_companions(source_dir, temporary)
        _write_tokenizer(source_dir, temporary, out_dir.name, trace)
    if settings.activations == "int8":
        tell_activations(weights, trace)
    trace.metric("file_bytes", folder_bytes(out_dir), "bytes", file=out_dir.name, dtype=label)


def _write_tokenizer(source: Path, target: Path, name: str, trace: Trace) -> None:
    """Models that cut text and join tokens; a warning where there can be none."""
    if not (source / "tokenizer.json").is_file():
        trace.warning(f"{name}: no tokenizer.json, so openvino_genai finds no tokenizer beside the model")
        return
    try:
        from openvino_tokenizers import convert_tokenizer  # noqa: PLC0415 - beside the extra
        from transformers import AutoTokenizer  # noqa: PLC0415 - takes seconds
    except ImportError as error:
        trace.warning(f"the tokenizer isn't turned into OpenVINO models: {error}; openvino_genai needs them")
        return
    tokenizer: Any = AutoTokenizer.from_pretrained(source, local_files_only=True)
    cutting, joining = convert_tokenizer(tokenizer, with_detokenizer=True)
    for model, stem in ((cutting, "openvino_tokenizer"), (joining, "openvino_detokenizer")):
        _name_by_order(model)
        openvino.serialize(model, target / f"{stem}.xml", target / f"{stem}.bin")


def _name_by_order(model: openvino.Model) -> None:
    """Replace names that OpenVINO counted up in this process, so that the same tokenizer gives the same bytes."""
    for number, node in enumerate(model.get_ordered_ops()):
        node.set_friendly_name(f"n{number}")
    for number, port in enumerate([*model.inputs, *model.outputs]):
        names = {name for name in port.get_names() if not re.fullmatch(r"(Parameter|Result)_[0-9]+", name)}
        port.get_tensor().set_names(names or {f"port{number}"})
