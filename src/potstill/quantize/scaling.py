"""By which factors should the columns of linears that share an input be multiplied before they are rounded? Pure.

Shapes: O rows (outputs) of a weight, I columns (inputs).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from potstill.quantize.placement import Grid
from potstill.quantize.search import codes_for, nearest_scales

__all__ = ["awq_factors", "output_error", "rounded_to_nearest", "smoothquant_factors"]

_SMALLEST = 1e-5


def awq_factors(
    weights_OI: Sequence[Tensor], grids: Sequence[Grid], magnitude_I: Tensor, hessian_II: Tensor, *, steps: int
) -> tuple[Tensor, float]:
    """Factors (mean |x|)^a, with the exponent a in 0..1 that gives the least error of the outputs, and that exponent.

    The error is that of rounding to nearest, tr((W' - W) H (W' - W)^T) over all the weights, which share their input.
    a = 0 multiplies by one, so the result is never worse than rounding to nearest. Columns without input keep factor
    one.

    Shapes: magnitude_I the mean |x| of each column; hessian_II the sum of x x^T.
    Source: Lin et al. 2023 (arXiv 2306.00978), section 3.2; differs: the error is the Hessian's, over all
        text.
    """
    best_I, chosen, least = torch.ones_like(magnitude_I), 0.0, float("inf")
    for step in range(steps + 1):
        exponent = step / steps
        factors_I = _normalised(magnitude_I, exponent)
        error = 0.0
        for weight_OI, grid in zip(weights_OI, grids, strict=True):
            back_OI = rounded_to_nearest(weight_OI * factors_I, grid) / factors_I
            error += output_error(weight_OI, back_OI, hessian_II)
        if error < least:
            best_I, chosen, least = factors_I, exponent, error
    return best_I, chosen


def smoothquant_factors(weights_OI: Sequence[Tensor], largest_I: Tensor, *, strength: float) -> Tensor:
    """max|x|^a / max|w|^(1 - a) for each column, w over all weights that share the input; one where either is zero.

    Source: Xiao et al. 2022 (arXiv 2211.10438), equation 4.
    """
    heaviest_I = torch.stack([weight_OI.abs().amax(0) for weight_OI in weights_OI]).amax(0)
    factors_I = largest_I**strength / heaviest_I ** (1 - strength)
    usable_I = (largest_I > 0) & (heaviest_I > 0) & factors_I.isfinite()
    return torch.where(usable_I, factors_I, 1.0).clamp(_SMALLEST, 1 / _SMALLEST)


def rounded_to_nearest(weight_OI: Tensor, grid: Grid) -> Tensor:
    """The weight read back after rounding each value to the nearest code."""
    groups_OGg = weight_OI.reshape(len(weight_OI), -1, grid.group or weight_OI.shape[1])
    scales_OG = nearest_scales(groups_OGg, grid)
    return (codes_for(groups_OGg, scales_OG, grid) * scales_OG.unsqueeze(-1)).reshape(weight_OI.shape)


def output_error(weight_OI: Tensor, back_OI: Tensor, hessian_II: Tensor) -> float:
    """tr((W' - W) H (W' - W)^T): the squared error of the outputs, summed over the text that H was summed over."""
    missed_OI = back_OI - weight_OI
    return float(((missed_OI @ hessian_II.to(missed_OI.dtype)) * missed_OI).sum())


def _normalised(magnitude_I: Tensor, exponent: float) -> Tensor:
    """Magnitudes to a power, so that the largest and the smallest factor are each other's inverse."""
    seen_I = magnitude_I > 0
    if not seen_I.any():
        return torch.ones_like(magnitude_I)
    powers_I = magnitude_I[seen_I].clamp_min(float(magnitude_I.max()) * _SMALLEST) ** exponent
    factors_I = torch.ones_like(magnitude_I)
    factors_I[seen_I] = powers_I / (powers_I.max() * powers_I.min()).sqrt()
    return factors_I
