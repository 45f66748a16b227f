"""How does a model directory become an ONNX model for onnxruntime, with codes kept exactly?

A directory comes out: ``model.onnx``, beside it ``model.onnx.data`` where the weights are too large for one file, and
config and tokenizer as they were. Inputs and outputs are named as Optimum names them.
"""

from contextlib import ExitStack
from pathlib import Path

from potstill.core.errors import InputError
from potstill.core.trace import Trace
from potstill.export import onnx_graph
from potstill.export.decoder import build_decoder
from potstill.export.folder import copy_companions, folder_bytes, replacing_folder
from potstill.export.onnx_ops import OnnxOps
from potstill.export.parts import Parts
from potstill.export.settings import OnnxExport
from potstill.model.weights import Weights

__all__ = ["DATA_FILE", "MODEL_FILE", "export_onnx"]

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
_HEAD_STEP = 8


def export_onnx(settings: OnnxExport, source_dir: Path, out_dir: Path, label: str, trace: Trace) -> None:
    """Write a model as ONNX with a key-value cache; tied embeddings once, scales in float16, floats as they are.

    Raises: InputError: a family or a tensor that potstill's table doesn't know, or heads that onnxruntime can't take.
    """
    weights = Weights(source_dir)
    parts = Parts(weights)
    if parts.facts.head_width % _HEAD_STEP:
        raise InputError(
            f"has heads of {parts.facts.head_width} columns; attention in onnxruntime takes multiples of {_HEAD_STEP}",
            where=str(source_dir),
            next_step="export it to another format",
        )
    large = weights.num_bytes() >= onnx_graph.EXTERNAL_FROM_BYTES
    with replacing_folder(out_dir) as temporary:
        with ExitStack() as stack:
            data = stack.enter_context((temporary / DATA_FILE).open("wb")) if large else None
            graph = onnx_graph.OnnxGraph(data, DATA_FILE)
            ops = OnnxOps(graph, parts.facts, settings.activations)
            ops.finish(build_decoder(parts, ops), parts.facts.vocabulary)
        metadata = {
            "potstill.activations": settings.activations,
            "potstill.dtype": label.partition("-")[0],
            "potstill.parameters": str(weights.num_parameters()),
        }
        graph.write(temporary / MODEL_FILE, metadata)
        copy_companions(source_dir, temporary)
    trace.metric("file_bytes", folder_bytes(out_dir), "bytes", file=out_dir.name, dtype=label)
