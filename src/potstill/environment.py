"""What a bug report needs to know of the machine and its software; no user, host or path names.

Only importing PyTorch tells its threads and devices, so ``describe`` takes a second or two.
"""

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from typing import Any

from potstill.core.hardware import hardware, memory_bytes, processor_fact

__all__ = ["describe"]

_LIBRARIES = (
    "torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "numpy", "pyarrow", "pydantic", "gguf",
    "altair", "vl-convert-python", "datasets", "onnx",
    "openvino-tokenizers", "openvino-genai", "compressed-tensors",
)  # fmt: skip
_RUNTIMES = {"pytorch": "torch", "llama.cpp": "xllamacpp", "onnxruntime": "onnxruntime", "openvino": "openvino"}
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def describe() -> Mapping[str, Any]:
    """Versions, processor, memory, threads, bfloat16 support and runtimes, as plain JSON values."""
    known = hardware()
    flags = processor_fact("flags", "Features").split()
    return {
        "potstill": _version("potstill"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": known["system"],
        "processor": {
            "model": known["processor"],
            "cores_usable": known["cores_usable"],
            "cores": os.cpu_count(),
            "bfloat16": bool(_BFLOAT16_FLAGS & set(flags)),
            "int8_dot_product": bool({"avx512_vnni", "avx_vnni", "asimddp"} & set(flags)),
        },
        "memory": {"total_bytes": known["memory_bytes"], "available_bytes": memory_bytes("MemAvailable")},
        "pytorch": _pytorch(),
        "runtimes": {name: _version(distribution) for name, distribution in _RUNTIMES.items()},
        "libraries": {name: _version(name) for name in _LIBRARIES},
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _pytorch() -> Mapping[str, Any]:
    import torch  # noqa: PLC0415 - takes a second; only this verb pays it

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"threads": torch.get_num_threads(), "gpus": gpus}
