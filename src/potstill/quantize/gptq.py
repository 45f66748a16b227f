"""How should columns be rounded one after another, so that later ones make up for the error of earlier ones? Pure.

Shapes: O rows (outputs) of a weight, I columns (inputs), G groups of g columns that share a scale.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.quantize.placement import Grid
from potstill.quantize.rows import in_chunks_of_rows
from potstill.quantize.search import code_range, search_scales

__all__ = ["Rounded", "gptq", "invertible"]

_COLUMNS_AT_ONCE = 128
_ROWS_AT_ONCE = 512
_LADDER = 10.0
_MOST_DAMPING = 1e3


@dataclass(frozen=True)
class Rounded:
    """Codes as whole numbers, scales that float16 holds, and the damping that it took.

    Shapes: codes_OI, scales_OG in the dtype of the weight.
    """

    codes_OI: Tensor
    scales_OG: Tensor
    damping: float
    num_dead: int


def gptq(
    weight_OI: Tensor, hessian_II: Tensor, grid: Grid, *, activation_order: bool, damping: float
) -> Rounded | None:
    """Codes and scales that nearly minimise the error of the outputs, tr((W' - W) H (W' - W)^T).

    Column by column: round it, and move the columns still to come by what minimises the error given that one. Columns
    that saw no input (dead) are rounded to nearest and move nothing. Damping, a share of the Hessian's mean diagonal,
    rises tenfold until the Hessian has a Cholesky factor. With ``activation_order`` columns go by falling diagonal and
    scales are searched beforehand; else scales are searched on a group's weights when its turn comes.

    Shapes: weight_OI float32 or float64; hessian_II float64, the sum of x x^T over the text.
    Returns: None where no damping helps, for the Hessian holds NaN or infinity.
    Source: Frantar et al. 2023 (arXiv 2210.17323), algorithm 1; differs: dead columns aren't set to zero.
    """
    columns = weight_OI.shape[1]
    diagonal_I = hessian_II.diagonal()
    dead_I = diagonal_I <= 0
    order_I = torch.argsort(diagonal_I, descending=True, stable=True) if activation_order else torch.arange(columns)
    factored = invertible(hessian_II[order_I][:, order_I], damping)
    if factored is None:
        return None
    upper_II, used = factored
    job = _Job(grid, order_I, upper_II.to(weight_OI.dtype), diagonal_I.to(weight_OI.dtype), activation_order)
    parts = in_chunks_of_rows(job.round, weight_OI, _ROWS_AT_ONCE)
    codes_OI, scales_OG = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Rounded(codes_OI, scales_OG, used, int(dead_I.sum()))


def invertible(hessian_II: Tensor, damping: float) -> tuple[Tensor, float] | None:
    """The upper Cholesky factor of the inverse of the damped Hessian, and the damping that it took.

    Dead columns get a diagonal of one. None if the Hessian isn't finite.
    """
    if not hessian_II.isfinite().all():
        return None
    dead_I = hessian_II.diagonal() <= 0
    live_II = hessian_II.clone()
    mean = float(live_II.diagonal()[~dead_I].mean()) if not dead_I.all() else 1.0
    live_II.diagonal()[dead_I] = mean
    while damping <= _MOST_DAMPING:
        damped_II = live_II / mean
        damped_II.diagonal().add_(damping)
        lower_II, failed = torch.linalg.cholesky_ex(damped_II)
        if not failed:
            upper_II, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower_II), upper=True)
            if not failed and upper_II.isfinite().all():
                return upper_II, damping
        damping *= _LADDER
    return None


@dataclass(frozen=True)
class _Job:
    """Everything that all rows share: the order of the columns, and how errors move to the ones still to come."""

    grid: Grid
    order_I: Tensor
    upper_II: Tensor
    diagonal_I: Tensor
    activation_order: bool

    def round(self, weight_OI: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [O, I] and scales [O, G] of some rows."""
        columns = weight_OI.shape[1]
        group = self.grid.group or columns
        importance_Gg = self.diagonal_I.reshape(-1, group)
        static = self.activation_order or group > _COLUMNS_AT_ONCE
        scales_GO = torch.zeros(columns // group, len(weight_OI), dtype=weight_OI.dtype)
        if static:
            groups_OGg = weight_OI.reshape(len(weight_OI), -1, group)
            scales_GO = search_scales(groups_OGg, importance_Gg, self.grid).T.contiguous()
        work = _Work(weight_OI[:, self.order_I].T.contiguous(), self.upper_II, scales_GO)
        codes_IO = work.round_all(self.grid, (self.order_I // group).tolist(), None if static else importance_Gg)
        codes_OI = torch.empty_like(weight_OI)
        codes_OI[:, self.order_I] = codes_IO.T
        return codes_OI, work.scales_GO.T.contiguous()


class _Work:
    """The weight while its columns are rounded, one row of ``weight_IO`` per column, in their order."""

    def __init__(self, weight_IO: Tensor, upper_II: Tensor, scales_GO: Tensor) -> None:
        self.weight_IO = weight_IO
        self.upper_II = upper_II
        self.scales_GO = scales_GO

    def round_all(self, grid: Grid, group_of_I: list[int], importance_Gg: Tensor | None) -> Tensor:
        """Codes [I, O]; with an importance, scales are searched when the first column of a group comes."""
        low, high = code_range(grid)
        codes_IO = torch.empty_like(self.weight_IO)
        for first in range(0, len(self.weight_IO), _COLUMNS_AT_ONCE):
            last = min(first + _COLUMNS_AT_ONCE, len(self.weight_IO))
            upper_CC = self.upper_II[first:last, first:last].contiguous()
            pivots_C = upper_CC.diagonal().tolist()
            errors_CO = torch.empty_like(self.weight_IO[first:last])
            part_CO = self.weight_IO[first:last]
            for column in range(last - first):
                number = group_of_I[first + column]
                if importance_Gg is not None and (first + column) % importance_Gg.shape[1] == 0:
                    self._search(number, importance_Gg, grid)
                scales_O = self.scales_GO[number]
                inverse_O = torch.where(scales_O == 0, 0.0, 1 / scales_O).nan_to_num_(0.0, 0.0, 0.0)
                codes_O = (part_CO[column] * inverse_O).round_().clamp_(low, high)
                codes_IO[first + column] = codes_O
                torch.sub(part_CO[column], codes_O.mul_(scales_O), out=errors_CO[column]).div_(pivots_C[column])
                part_CO[column + 1 :].addr_(upper_CC[column, column + 1 :], errors_CO[column], alpha=-1)
            self.weight_IO[last:].addmm_(self.upper_II[first:last, last:].T, errors_CO, alpha=-1)
        return codes_IO

    def _search(self, number: int, importance_Gg: Tensor, grid: Grid) -> None:
        group = importance_Gg.shape[1]
        weights_OGg = self.weight_IO[number * group : (number + 1) * group].T.unsqueeze(1).contiguous()
        self.scales_GO[number] = search_scales(weights_OGg, importance_Gg[number : number + 1], grid)[:, 0]
