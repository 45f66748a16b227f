"""What a bug report needs to know of the machine and its software; no user, host or path names.

Only importing PyTorch tells its threads and devices, so ``describe`` takes a second or two.
"""

import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["describe"]

_LIBRARIES = (
    "torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "numpy", "pyarrow", "pydantic", "gguf",
    "altair", "vl-convert-python", "datasets",
)  # fmt: skip
_RUNTIMES = {"pytorch": "torch", "llama.cpp": "xllamacpp", "onnxruntime": "onnxruntime", "openvino": "openvino"}
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def describe() -> Mapping[str, Any]:
    """Versions, processor, memory, threads, bfloat16 support and runtimes, as plain JSON values."""
    flags = _processor("flags", "Features").split()
    return {
        "potstill": _version("potstill"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.machine()}",
        "processor": {
            "model": _processor("model name") or platform.processor() or "unknown",
            "cores_usable": _cores_usable(),
            "cores": os.cpu_count(),
            "bfloat16": bool(_BFLOAT16_FLAGS & set(flags)),
            "int8_dot_product": bool({"avx512_vnni", "avx_vnni", "asimddp"} & set(flags)),
        },
        "memory": {"total_bytes": _memory("MemTotal"), "available_bytes": _memory("MemAvailable")},
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


def _cores_usable() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _processor(*keys: str) -> str:
    for key in keys:
        match = re.search(rf"^{re.escape(key)}\s*:\s*(.*)$", _text("/proc/cpuinfo"), re.MULTILINE)
        if match:
            return match[1].strip()
    return ""


def _memory(key: str) -> int | None:
    match = re.search(rf"^{key}:\s*(\d+) kB$", _text("/proc/meminfo"), re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
