"""Round the linears of one block by a method, knowing what they saw. Tensors in, codes and facts out.

Shapes: O rows (outputs) of a weight, I columns (inputs), G groups of columns that share a scale.
"""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.core import interrupt
from potstill.model.weights import CodedTensor, GgmlBlocks, dequantize
from potstill.quantize.folding import Fold, apply_fold
from potstill.quantize.gptq import Rounded, gptq
from potstill.quantize.grids import require_finite
from potstill.quantize.placement import Grid, Placement
from potstill.quantize.scaling import awq_factors, output_error, smoothquant_factors
from potstill.quantize.search import codes_for, nearest_scales, search_scales
from potstill.quantize.settings import Awq, Calibrated, Gptq, SmoothQuant
from potstill.quantize.statistics import InputStatistics
from potstill.runtime.ggml_grids import quantize_blocks

__all__ = ["CODED", "BlockWork", "needs_hessian", "round_by_search", "round_linear", "scale_inputs"]

CODED = {"int8", "int4"}
_BLOCKS = {"q3_k", "q2_k"}


@dataclass
class BlockWork:
    """A block while it is quantized: weights [O, I] and vectors by path in the block, and what the linears saw.

    ``prefix`` and a path make a tensor's name but for ".weight"; ``told`` gathers the sentences of fallbacks.
    """

    prefix: str
    matrices: Mapping[str, Tensor]
    vectors: MutableMapping[str, Tensor]
    seen: Mapping[str, InputStatistics]
    placed: Mapping[str, Placement]
    told: list[str] = field(default_factory=list)


def needs_hessian(method: Calibrated) -> bool:
    """Whether the method wants the sum of x x^T, not only that of squares."""
    return isinstance(method, Gptq | Awq)


def scale_inputs(method: Calibrated, work: BlockWork, folds: list[Fold]) -> dict[str, float]:
    """Scale columns as AWQ or SmoothQuant does, in place, what the linears see included; other methods scale nothing.

    Returns: AWQ's exponent for each fold's source.
    """
    exponents: dict[str, float] = {}
    for fold in folds if isinstance(method, Awq | SmoothQuant) else ():
        interrupt.check()
        seen = work.seen[fold.readers[0]]
        readers = [name for name in fold.readers if work.placed[name].grid.name in CODED]
        if not readers or not seen.tokens:
            continue
        weights = [work.matrices[name] for name in readers]
        if isinstance(method, SmoothQuant):
            factors_I = smoothquant_factors(weights, seen.largest_I.float(), strength=method.strength)
        elif isinstance(method, Awq):
            grids = [work.placed[name].grid for name in readers]
            magnitude_I = (seen.magnitudes_I / seen.tokens).float()
            hessian_II = _hessian(seen).float()
            factors_I, exponents[fold.source] = awq_factors(weights, grids, magnitude_I, hessian_II, steps=method.steps)
        apply_fold(fold, factors_I, work.matrices, work.vectors)
        seen.divide(factors_I)
    return exponents


def round_linear(method: Calibrated, work: BlockWork, path: str) -> tuple[CodedTensor | GgmlBlocks, dict[str, Any]]:
    """Codes and scales (or blocks) of one linear, and what there is to tell of it."""
    weight_OI, grid, seen = work.matrices[path], work.placed[path].grid, work.seen[path]
    require_finite(weight_OI.numpy(), f"{work.prefix}{path}.weight")
    facts: dict[str, Any] = {"tokens": seen.tokens}
    if grid.name in _BLOCKS:
        importance_I = seen.squares_I.float().numpy() if seen.squares_I.any() else None
        return quantize_blocks(weight_OI.numpy(), grid.name, importance_I), facts
    rounded = None
    if isinstance(method, Gptq):
        rounded = gptq(
            weight_OI, _hessian(seen), grid, activation_order=method.activation_order, damping=method.damping
        )
        if rounded is None:
            work.told.append(f"{work.prefix}{path}: its Hessian isn't finite: scales are searched instead")
        else:
            facts |= {"damping": rounded.damping, "dead_columns": rounded.num_dead}
            if rounded.damping > method.damping:
                work.told.append(f"{work.prefix}{path}: its Hessian is singular: damped by {rounded.damping:g}")
    if rounded is None and isinstance(method, SmoothQuant):
        coded = _coded(weight_OI, nearest_scales(_groups(weight_OI, grid), grid), grid)
    elif rounded is None:
        coded = round_by_search(weight_OI, grid, seen.squares_I.to(weight_OI.dtype))
    else:
        coded = _from_rounded(rounded, grid)
    if seen.hessian_II is not None:
        facts["output_error_relative"] = _relative_error(weight_OI, coded, seen.hessian_II)
    return coded, facts


def round_by_search(weight_OI: Tensor, grid: Grid, importance_I: Tensor | None) -> CodedTensor:
    """Search scales by squared error, columns weighed by an importance, or all alike."""
    groups_OGg = _groups(weight_OI, grid)
    weights_I = torch.ones_like(weight_OI[0]) if importance_I is None else importance_I
    scales_OG = search_scales(groups_OGg, weights_I.reshape(groups_OGg.shape[1:]), grid)
    return _coded(weight_OI, scales_OG, grid)


def _hessian(seen: InputStatistics) -> Tensor:
    assert seen.hessian_II is not None  # noqa: S101 - needs_hessian said so
    return seen.hessian_II


def _groups(weight_OI: Tensor, grid: Grid) -> Tensor:
    return weight_OI.reshape(len(weight_OI), -1, grid.group or weight_OI.shape[1])


def _coded(weight_OI: Tensor, scales_OG: Tensor, grid: Grid) -> CodedTensor:
    codes_OI = codes_for(_groups(weight_OI, grid), scales_OG, grid).reshape(weight_OI.shape)
    return _from_rounded(Rounded(codes_OI, scales_OG, 0.0, 0), grid)


def _from_rounded(rounded: Rounded, grid: Grid) -> CodedTensor:
    codes_OI, scales_OG = rounded.codes_OI.numpy().astype(np.int8), rounded.scales_OG.numpy().astype(np.float16)
    require_finite(scales_OG.astype(np.float32), "a float16 scale")
    return CodedTensor(codes_OI, scales_OG, 8 if grid.name == "int8" else 4)


def _relative_error(weight_OI: Tensor, coded: CodedTensor, hessian_II: Tensor) -> float:
    """Root of the squared error of the outputs over their squared size."""
    back_OI = torch.from_numpy(dequantize(coded))
    size = output_error(weight_OI, torch.zeros_like(weight_OI), hessian_II)
    return (max(output_error(weight_OI, back_OI, hessian_II), 0.0) / size) ** 0.5 if size > 0 else 0.0
