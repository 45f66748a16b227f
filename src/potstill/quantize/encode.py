"""How does a weight look in the file, on its grid? Pure: an array in, the file's entries and the weight read back out.

Shapes: O rows (outputs) of a weight, I columns (inputs).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.model.weights import CodedTensor, GgmlBlocks, coded_entries, dequantize
from potstill.quantize.grids import quantize_int4, quantize_int8, require_finite, to_bfloat16, to_float16
from potstill.quantize.placement import Grid
from potstill.runtime.ggml_grids import quantize_blocks

__all__ = ["Encoded", "coded_on", "encode", "encode_blocks", "encode_coded", "squares", "to_float"]

_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Encoded:
    """Entries of the file by key, and the float32 weight that a reader gets from them."""

    entries: Mapping[str, Tensor]
    back: NDArray[np.float32]


def encode(name: str, weight_OI: NDArray[np.float32], grid: Grid) -> Encoded:
    """Round a matrix to the nearest values of its grid.

    Raises: InputError: a weight isn't finite, or larger than the grid's scales can say.
    """
    if grid.name in {"int8", "int4"}:
        return encode_coded(name, coded_on(grid, weight_OI, name=name))
    if grid.name in {"q3_k", "q2_k"}:
        require_finite(weight_OI, name)
        return encode_blocks(name, quantize_blocks(weight_OI, grid.name))
    return to_float(name, weight_OI, grid)


def coded_on(grid: Grid, weight_OI: NDArray[np.float32], *, name: str) -> CodedTensor:
    """Codes and scales by rounding to nearest, for the grids that have them."""
    return (quantize_int8 if grid.name == "int8" else quantize_int4)(weight_OI, grid.group, name=name)


def encode_coded(name: str, coded: CodedTensor) -> Encoded:
    """Entries of codes and scales that were chosen already."""
    return Encoded(coded_entries(name, coded), dequantize(coded))


def encode_blocks(name: str, blocks: GgmlBlocks) -> Encoded:
    """Entries of blocks that were chosen already."""
    return Encoded({f"{name}.{blocks.grid}": torch.from_numpy(blocks.blocks_ON)}, blocks.dequantize())


def to_float(name: str, weight: NDArray[np.float32], grid: Grid) -> Encoded:
    """A tensor of any shape in float32, float16 or bfloat16.

    Raises: InputError: a weight isn't finite, or too large for the type.
    """
    if grid.name == "float32":
        require_finite(weight, name)
        return Encoded({name: torch.from_numpy(weight)}, weight)
    rounded: NDArray[Any]
    if grid.name == "float16":
        rounded = to_float16(weight, name=name)
        return Encoded({name: torch.from_numpy(rounded)}, rounded.astype(np.float32))
    rounded = to_bfloat16(weight, name=name)
    half = torch.from_numpy(rounded).view(torch.bfloat16)
    return Encoded({name: half}, half.float().numpy())


def squares(exact: NDArray[np.float32], back: NDArray[np.float32]) -> tuple[float, float]:
    """Sums of (back - exact)^2 and of exact^2 in float64, a few rows at a time: the whole would be in memory twice."""
    missed = total = 0.0
    for first in range(0, len(exact), _ROWS_AT_ONCE):
        rows = exact[first : first + _ROWS_AT_ONCE].astype(np.float64)
        missed += float(np.square(back[first : first + _ROWS_AT_ONCE] - rows).sum())
        total += float(np.square(rows).sum())
    return missed, total
