"""Which integers and scales stand for a weight? Pure: arrays in, arrays out, bit-equal to what runtimes expect.

Shapes: O rows (outputs) of a weight, I columns (inputs), G groups of g columns that share a scale.
"""

import numpy as np
from numpy.typing import NDArray

from potstill.core.errors import InputError
from potstill.model.weights import CodedTensor, dequantize

__all__ = ["CodedTensor", "dequantize", "quantize_int8", "to_float16"]


def quantize_int8(weight_OI: NDArray[np.float32], group: int = 32, *, name: str = "weight") -> CodedTensor:
    """Symmetric int8: scale = max|w| / 127 per group, code = w / scale rounded, halves away from zero.

    Codes come from the float32 scale and its float32 reciprocal, and the scale is rounded to float16 afterwards: that
    is what llama.cpp does, and its bits are the contract. A group whose float32 scale is so small that it has no
    float32 reciprocal gets codes of zero (the reference divides by it, and leaves the result open); its float16 scale
    is zero anyway.

    Shapes: weight_OI float32, I a multiple of ``group``.
    Returns: |w - code * scale| <= scale / 2 + 127 * (the rounding of the scale to float16).
    Raises: InputError: a weight isn't finite, or a scale exceeds float16 (|w| > 8.3 million), naming the tensor.
    Source: ggml-quants.c, quantize_row_q8_0_ref.
    """
    rows, columns = weight_OI.shape
    _require_finite(weight_OI, name)
    groups_OGg = np.ascontiguousarray(weight_OI, dtype=np.float32).reshape(rows, columns // group, group)
    scales_OG = np.abs(groups_OGg).max(axis=2, initial=0) / np.float32(127)
    with np.errstate(divide="ignore", over="ignore"):
        inverse_OG = np.where(scales_OG == 0, np.float32(0), np.float32(1) / scales_OG)
        inverse_OG = np.where(np.isinf(inverse_OG), np.float32(0), inverse_OG)
        scales16_OG = scales_OG.astype(np.float16)
    if np.isinf(scales16_OG).any():
        raise _too_large(weight_OI, name, "an int8 group's float16 scale")
    codes_OGg = _round_half_away(groups_OGg * inverse_OG[:, :, None]).astype(np.int8)
    return CodedTensor(codes_OGg.reshape(rows, columns), scales16_OG)


def to_float16(weight: NDArray[np.float32], *, name: str = "weight") -> NDArray[np.float16]:
    """Round to IEEE half, to the nearest even; never to infinity.

    Raises: InputError: a weight isn't finite, or would become infinite, naming the tensor.
    """
    _require_finite(weight, name)
    with np.errstate(over="ignore"):
        half = weight.astype(np.float16)
    if np.isinf(half).any():
        raise _too_large(weight, name, "float16")
    return half


def _round_half_away(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """C's roundf; numpy's own rounds halves to even."""
    magnitude = np.abs(values)
    whole = np.floor(magnitude)
    rounded: NDArray[np.float32] = np.copysign(whole + np.floor(2 * (magnitude - whole)), values)
    return rounded


def _require_finite(weight: NDArray[np.float32], name: str) -> None:
    finite = np.isfinite(weight)
    if not finite.all():
        first = tuple(int(index) for index in np.argwhere(~finite)[0])
        raise InputError(
            f"{int((~finite).sum()):,} weights are NaN or infinite, the first at {first}",
            where=name,
            next_step="the training that made this model diverged; train again with a lower learning rate",
        )


def _too_large(weight: NDArray[np.float32], name: str, what: str) -> InputError:
    return InputError(
        f"its largest weight, {float(np.abs(weight).max()):.4g}, is more than {what} can hold",
        where=name,
        next_step="keep this model in float32, or rescale the tensor",
    )
