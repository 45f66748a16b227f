"""Activations rounded to int8, one scale per token: what a runtime with integer products does, in floats.

Shapes: D columns of a token's activations.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

__all__ = ["round_inputs", "rounded_per_token"]


def rounded_per_token(values: Tensor) -> Tensor:
    """Codes times scale, with scale = max|x| / 127 over a token's columns and codes rounded half to even.

    A token of zeros stays zero. Sums of products of such codes are exact in a runtime's int32, so floats differ from it
    by their rounding only.

    Shapes: values [..., D], any float dtype.
    """
    scales = values.abs().amax(-1, keepdim=True) / 127
    codes = torch.where(scales > 0, values / scales, 0.0).round()
    return codes * scales


def round_inputs(linear: nn.Module) -> RemovableHandle:
    """Let a linear see its inputs rounded per token, until what this returns is removed."""
    return linear.register_forward_pre_hook(_rounded_first)


def _rounded_first(_linear: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (rounded_per_token(inputs[0]), *inputs[1:])
