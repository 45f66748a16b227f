"""How much memory this process used at its peak, for one piece of work at a time."""

import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

__all__ = ["peak_memory_bytes", "reset_peak_memory"]

_STATUS = Path("/proc/self/status")


def reset_peak_memory() -> None:
    """Start a new peak from what is in use now, where the system can (Linux); elsewhere the peak is the process's."""
    with suppress(OSError):
        descriptor = os.open("/proc/self/clear_refs", os.O_WRONLY)
        try:
            os.write(descriptor, b"5")
        finally:
            os.close(descriptor)


def peak_memory_bytes() -> int:
    """The largest resident set since the last ``reset_peak_memory``, in bytes."""
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes
