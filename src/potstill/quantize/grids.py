"""Which integers and scales stand for a weight? Pure: arrays in, arrays out, bit-equal to what runtimes expect.

Shapes: O rows (outputs) of a weight, I columns (inputs), G groups of g columns that share a scale.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from potstill.core.errors import InputError
from potstill.model.weights import CodedTensor, dequantize

__all__ = ["CodedTensor", "dequantize", "quantize_int4", "quantize_int8", "require_finite", "to_bfloat16", "to_float16"]


def quantize_int8(weight_OI: NDArray[np.float32], group: int | None = 32, *, name: str = "weight") -> CodedTensor:
    """Symmetric int8: scale = max|w| / 127 per group, code = w / scale rounded, halves away from zero.

    Codes come from the float32 scale and its float32 reciprocal, and the scale is rounded to float16 afterwards: that
    is what llama.cpp does, and its bits are the contract. A group whose float32 scale is so small that it has no
    float32 reciprocal gets codes of zero (the reference divides by it, and leaves the result open); its float16 scale
    is zero anyway.

    Shapes: weight_OI float32, I a multiple of ``group``; None makes one group of the whole row.
    Returns: |w - code * scale| <= scale / 2 + 127 * (the rounding of the scale to float16).
    Raises: InputError: a weight isn't finite, or a scale exceeds float16 (|w| > 8.3 million), naming the tensor.
    Source: ggml-quants.c, quantize_row_q8_0_ref.
    """
    return _quantize(weight_OI, group, name, bits=8, scale=_largest_over_127, code=_round_half_away)


def quantize_int4(weight_OI: NDArray[np.float32], group: int | None = 32, *, name: str = "weight") -> CodedTensor:
    """Symmetric int4: scale = w* / -8 for the weight w* of largest magnitude in the group, codes -8..7.

    The scale has the sign that puts w* on -8 exactly, where the grid reaches furthest; the code of a weight of the
    opposite sign and more than 7.5 steps is clipped to 7. As with int8, codes come from the float32 scale, and at 32
    columns the bits are llama.cpp's.

    Shapes: weight_OI float32, I a multiple of ``group``; None makes one group of the whole row.
    Returns: |w - code * scale| <= |scale| + 8 * (the rounding of the scale to float16).
    Raises: InputError: a weight isn't finite, or a scale exceeds float16 (|w| > 524,000), naming the tensor.
    Source: ggml-quants.c, quantize_row_q4_0_ref.
    """
    return _quantize(weight_OI, group, name, bits=4, scale=_extreme_over_minus_8, code=_truncate_to_four_bits)


_Scale = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def _quantize(
    weight_OI: NDArray[np.float32], group: int | None, name: str, *, bits: int, scale: _Scale, code: _Scale
) -> CodedTensor:
    rows, columns = weight_OI.shape
    require_finite(weight_OI, name)
    groups_OGg = np.ascontiguousarray(weight_OI, dtype=np.float32).reshape(rows, -1, group or columns)
    scales_OG = scale(groups_OGg)
    with np.errstate(divide="ignore", over="ignore"):
        inverse_OG = np.where(scales_OG == 0, np.float32(0), np.float32(1) / scales_OG)
        inverse_OG = np.where(np.isinf(inverse_OG), np.float32(0), inverse_OG)
        scales16_OG = scales_OG.astype(np.float16)
    if np.isinf(scales16_OG).any():
        raise _too_large(weight_OI, name, f"an int{bits} group's float16 scale")
    codes_OGg = code(groups_OGg * inverse_OG[:, :, None]).astype(np.int8)
    return CodedTensor(codes_OGg.reshape(rows, columns), scales16_OG, bits)


def _largest_over_127(groups_OGg: NDArray[np.float32]) -> NDArray[np.float32]:
    largest_OG: NDArray[np.float32] = np.abs(groups_OGg).max(axis=2, initial=0) / np.float32(127)
    return largest_OG


def _extreme_over_minus_8(groups_OGg: NDArray[np.float32]) -> NDArray[np.float32]:
    at_OG1 = np.abs(groups_OGg).argmax(axis=2, keepdims=True)
    extreme_OG: NDArray[np.float32] = np.take_along_axis(groups_OGg, at_OG1, axis=2)[:, :, 0] / np.float32(-8)
    return extreme_OG


def _truncate_to_four_bits(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """C's cast of x + 8.5 to an integer, at most 15, less 8."""
    codes: NDArray[np.float32] = np.minimum(np.trunc(values + np.float32(8.5)), np.float32(15)) - np.float32(8)
    return codes


def to_float16(weight: NDArray[np.float32], *, name: str = "weight") -> NDArray[np.float16]:
    """Round to IEEE half, to the nearest even; never to infinity.

    Raises: InputError: a weight isn't finite, or would become infinite, naming the tensor.
    """
    require_finite(weight, name)
    with np.errstate(over="ignore"):
        half = weight.astype(np.float16)
    if np.isinf(half).any():
        raise _too_large(weight, name, "float16")
    return half


def to_bfloat16(weight: NDArray[np.float32], *, name: str = "weight") -> NDArray[np.uint16]:
    """Round to bfloat16, to the nearest even, as its 16 bits; never to infinity.

    Raises: InputError: a weight isn't finite, or would become infinite (|w| > 3.39e38), naming the tensor.
    """
    require_finite(weight, name)
    bits = np.ascontiguousarray(weight, dtype=np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)).astype(np.uint16)
    if ((rounded & 0x7FFF) == 0x7F80).any():
        raise _too_large(weight, name, "bfloat16")
    return rounded


def _round_half_away(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """C's roundf; numpy's own rounds halves to even."""
    magnitude = np.abs(values)
    whole = np.floor(magnitude)
    rounded: NDArray[np.float32] = np.copysign(whole + np.floor(2 * (magnitude - whole)), values)
    return rounded


def require_finite(weight: NDArray[np.float32], name: str) -> None:
    """Refuse a tensor that holds NaN or infinity.

    Raises: InputError: naming it, and the place of the first such weight.
    """
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
