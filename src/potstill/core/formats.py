"""Of which format is a file or folder? Told from its name and what stands in it."""

from pathlib import Path

from potstill.core.durable import read_json
from potstill.core.errors import InputError

__all__ = ["FORMATS", "format_of"]

FORMATS = ("gguf", "onnx", "openvino", "compressed-tensors")
"""What models are exported to; a file or folder of a format ends in a dot and its name."""


def format_of(path: Path) -> str:
    """The format of a file or folder: one of ``FORMATS``, or "safetensors" for a model directory.

    Raises: InputError: it is none of them.
    """
    if path.is_file() and path.suffix == ".gguf":
        return "gguf"
    if (path.is_file() and path.suffix == ".onnx") or (path / "model.onnx").is_file():
        return "onnx"
    if (path.is_file() and path.name == "openvino_model.xml") or (path / "openvino_model.xml").is_file():
        return "openvino"
    if (path / "config.json").is_file():
        packed = path.suffix == ".compressed-tensors" or _quantized_by(path) == "compressed-tensors"
        return "compressed-tensors" if packed else "safetensors"
    what = "doesn't exist" if not path.exists() else "is neither a .gguf file nor a directory with config.json"
    raise InputError(what, where=str(path), next_step="name a model directory, a .gguf file or an exported folder")


def _quantized_by(directory: Path) -> object:
    """Which tool quantized a Hugging Face directory, by its configuration; None for one that isn't."""
    config = read_json(directory / "config.json")
    told = config.get("quantization_config") if isinstance(config, dict) else None
    return told.get("quant_method") if isinstance(told, dict) else None
