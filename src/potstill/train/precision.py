"""What this machine computes in: the device, and the precision that is fast there without losing the run."""

from typing import Literal

import torch

from potstill.model.native import bfloat16_is_native
from potstill.train.settings import Precision

__all__ = ["resolve_device", "resolve_precision"]


def resolve_device(device: Literal["auto", "cpu", "cuda"]) -> str:
    """``auto`` is the GPU where PyTorch sees one, else the CPU."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_precision(precision: Literal["auto", "float32", "bfloat16"], device: str) -> Precision:
    """``auto`` is bfloat16 where the hardware multiplies it natively, else float32."""
    if precision != "auto":
        return precision
    return "bfloat16" if bfloat16_is_native(device) else "float32"
