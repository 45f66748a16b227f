"""Which engine opens a path? Told from what stands there; torch is imported only for directories."""

from pathlib import Path

from potstill.core.errors import InputError
from potstill.core.hardware import cores_usable
from potstill.runtime.engine import Engine

__all__ = ["open_engine"]


def open_engine(path: Path, *, threads: int | None = None) -> Engine:
    """Open a GGUF file in llama.cpp, a Hugging Face or a quantized directory in PyTorch.

    ``threads`` None means: as many as this process may use.

    Raises: InputError: neither stands there, or it is damaged. ResourceError: its runtime isn't installed.
    """
    number = threads or cores_usable()
    if path.is_file() and path.suffix == ".gguf":
        from potstill.runtime.llama_cpp import LlamaCppEngine  # noqa: PLC0415 - each runtime only when used

        return LlamaCppEngine(path, threads=number)
    if (path / "config.json").is_file():
        from potstill.runtime.pytorch import PytorchEngine  # noqa: PLC0415 - each runtime only when used

        return PytorchEngine(path, threads=number)
    what = "doesn't exist" if not path.exists() else "is neither a .gguf file nor a directory with config.json"
    raise InputError(what, where=str(path), next_step="name a model directory or a .gguf file")
