"""What this machine is, as far as its files tell; no user, host or path names."""

import os
import platform
import re
from pathlib import Path
from typing import Any

__all__ = ["cores_usable", "hardware", "memory_bytes", "processor_fact"]


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, and memory: what a measured speed means nothing without."""
    return {
        "processor": processor_fact("model name") or platform.processor() or "unknown",
        "cores_usable": cores_usable(),
        "memory_bytes": memory_bytes("MemTotal"),
        "system": f"{platform.system()} {platform.machine()}",
    }


def cores_usable() -> int:
    """The cores that this process may run on, where the system tells."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def processor_fact(*keys: str) -> str:
    """The first of these entries of /proc/cpuinfo; empty where there is none."""
    for key in keys:
        match = re.search(rf"^{re.escape(key)}\s*:\s*(.*)$", _text("/proc/cpuinfo"), re.MULTILINE)
        if match:
            return match[1].strip()
    return ""


def memory_bytes(key: str) -> int | None:
    """An entry of /proc/meminfo, such as MemTotal; None where there is none."""
    match = re.search(rf"^{key}:\s*(\d+) kB$", _text("/proc/meminfo"), re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
