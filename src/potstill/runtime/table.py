"""Which engine opens a path? Told from what stands there; a runtime is imported only where it is used."""

from pathlib import Path

from potstill.core.formats import format_of
from potstill.core.hardware import cores_usable
from potstill.runtime.engine import Engine

__all__ = ["needs_torch", "open_engine"]


def open_engine(path: Path, *, threads: int | None = None) -> Engine:
    """Open a file or folder in the runtime of its format, a model directory in PyTorch.

    ``threads`` None means: as many as this process may use.

    Raises: InputError: none of them stands there, or it is damaged. ResourceError: its runtime isn't installed.
    """
    number = threads or cores_usable()
    match format_of(path):
        case "gguf":
            from potstill.runtime.llama_cpp import LlamaCppEngine  # noqa: PLC0415 - each runtime only when used

            return LlamaCppEngine(path, threads=number)
        case "onnx":
            from potstill.runtime.onnxruntime import OnnxruntimeEngine  # noqa: PLC0415 - the same

            return OnnxruntimeEngine(path, threads=number)
        case "openvino":
            from potstill.runtime.openvino import OpenvinoEngine  # noqa: PLC0415 - the same

            return OpenvinoEngine(path, threads=number)
        case "compressed-tensors":
            from potstill.runtime.compressed_tensors import open_compressed_tensors  # noqa: PLC0415 - the same

            return open_compressed_tensors(path, threads=number)
        case _:
            from potstill.runtime.pytorch import PytorchEngine  # noqa: PLC0415 - the same

            return PytorchEngine(path, threads=number)


def needs_torch(path: Path) -> bool:
    """Whether the engine of this path is PyTorch.

    Raises: InputError: no engine opens it.
    """
    return format_of(path) not in {"gguf", "onnx", "openvino"}
