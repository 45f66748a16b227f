"""Which scale gives a group of weights the least error? Pure: tensors in, scales and codes out.

Shapes: O rows (outputs) of a weight, I columns (inputs), G groups of g columns that share a scale.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from potstill.quantize.placement import Grid
from potstill.quantize.rows import in_chunks_of_rows

__all__ = ["code_range", "codes_for", "nearest_scales", "search_scales", "to_coded_scales"]

_FACTORS = (0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.71, 0.66, 0.6, 0.54, 1.04)
_MIRRORED = (1.14, 1.08, 1.02, 0.97, 0.92, 0.87, 0.82, 0.76, 0.69)
_WEIGHTS_AT_ONCE = 1 << 16


def code_range(grid: Grid) -> tuple[int, int]:
    """The smallest and the largest code of a grid."""
    return (-127, 127) if grid.name == "int8" else (-8, 7)


def nearest_scales(groups_OGg: Tensor, grid: Grid) -> Tensor:
    """The scales of rounding to nearest: max|w| / 127, or the weight of largest magnitude / -8.

    Returns: [O, G], rounded to what float16 holds, in the dtype of the weights.
    """
    at_OG1 = groups_OGg.abs().argmax(-1, keepdim=True)
    extreme_OG = groups_OGg.gather(-1, at_OG1).squeeze(-1)
    return to_coded_scales(extreme_OG.abs() / 127 if grid.name == "int8" else extreme_OG / -8)


def search_scales(groups_OGg: Tensor, importance_Gg: Tensor, grid: Grid) -> Tensor:
    """The scale that minimises the sum of importance * (w - code * scale)^2 in each group, of some twenty.

    Tried are that of rounding to nearest, smaller ones of it and of its mirror image, and for the best of them the
    least-squares scale of its codes. Never worse than rounding to nearest; equal to it where nothing is better, so a
    group whose columns never see an input keeps its scale.

    Shapes: groups_OGg float32 or float64; importance_Gg of the same dtype, not negative.
    Returns: [O, G], rounded to what float16 holds.
    """
    at_once = max(1, _WEIGHTS_AT_ONCE // (groups_OGg.shape[1] * groups_OGg.shape[2]))
    return torch.cat(in_chunks_of_rows(lambda part_OGg: _search(part_OGg, importance_Gg, grid), groups_OGg, at_once))


def codes_for(groups_OGg: Tensor, scales_OG: Tensor, grid: Grid) -> Tensor:
    """The nearest code of each weight for given scales; zero where a scale is zero.

    Returns: whole numbers in the dtype of the weights, [O, G, g].
    """
    inverse_OG = torch.where(scales_OG == 0, 0.0, 1 / scales_OG)
    inverse_OG = torch.where(inverse_OG.isfinite(), inverse_OG, 0.0)
    return (groups_OGg * inverse_OG.unsqueeze(-1)).round_().clamp_(*code_range(grid))


def to_coded_scales(scales: Tensor) -> Tensor:
    """Scales as float16 will hold them, in the dtype that they have."""
    return scales.half().to(scales.dtype)


def _search(groups_OGg: Tensor, importance_Gg: Tensor, grid: Grid) -> Tensor:
    best_OG = nearest_scales(groups_OGg, grid)
    least_OG = _error(groups_OGg, best_OG, importance_Gg, grid)
    for scales_OG in _candidates(best_OG, grid):
        best_OG, least_OG = _better(groups_OGg, scales_OG, best_OG, least_OG, importance_Gg, grid)
    codes_OGg = codes_for(groups_OGg, best_OG, grid)
    weighed_OGg = codes_OGg * importance_Gg
    energy_OG = (weighed_OGg * codes_OGg).sum(-1)
    fitted_OG = torch.where(energy_OG > 0, (weighed_OGg * groups_OGg).sum(-1) / energy_OG, best_OG)
    fitted_OG = torch.where(fitted_OG.isfinite(), fitted_OG, best_OG)
    return _better(groups_OGg, to_coded_scales(fitted_OG), best_OG, least_OG, importance_Gg, grid)[0]


def _candidates(nearest_OG: Tensor, grid: Grid) -> Iterator[Tensor]:
    for factor in _FACTORS:
        yield to_coded_scales(nearest_OG * factor)
    if grid.name == "int4":
        for factor in _MIRRORED:
            yield to_coded_scales(nearest_OG * -factor)


def _better(
    groups_OGg: Tensor, tried_OG: Tensor, best_OG: Tensor, least_OG: Tensor, importance_Gg: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    error_OG = _error(groups_OGg, tried_OG, importance_Gg, grid)
    better_OG = (error_OG < least_OG) & tried_OG.isfinite()
    return torch.where(better_OG, tried_OG, best_OG), torch.where(better_OG, error_OG, least_OG)


def _error(groups_OGg: Tensor, scales_OG: Tensor, importance_Gg: Tensor, grid: Grid) -> Tensor:
    missed_OGg = groups_OGg - codes_for(groups_OGg, scales_OG, grid) * scales_OG.unsqueeze(-1)
    return (missed_OGg.square_() * importance_Gg).sum(-1)
