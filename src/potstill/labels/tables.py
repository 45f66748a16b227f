"""Symbols whose frequencies are the same at every position: levels, ranks, weights.

Shapes: n stacks, L symbols of a table; cdf_L1 their cumulative frequencies, from 0 to 2^16, each at least 1.
"""

import numpy as np
from numpy.typing import NDArray

from potstill.labels.stacks import U64, Stacks, certain_unless

__all__ = ["pop_symbols", "push_symbols"]

_TABLE_BITS = 16


def push_symbols(
    stacks: Stacks, symbols_n: NDArray[np.int64], cdf_L1: NDArray[np.int64], wanted_n: NDArray[np.bool_] | None = None
) -> None:
    """Push a symbol on each of the first n stacks, or on those where one is wanted."""
    stacks.push(*certain_unless(wanted_n, *_intervals(cdf_L1, symbols_n), _TABLE_BITS), _TABLE_BITS)


def pop_symbols(
    stacks: Stacks, n: int, cdf_L1: NDArray[np.int64], wanted_n: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """The symbols that ``push_symbols`` pushed last; where none is wanted what comes out means nothing."""
    symbols_n = np.searchsorted(cdf_L1, stacks.peek(n, _TABLE_BITS).astype(np.int64), side="right") - 1
    stacks.pop(*certain_unless(wanted_n, *_intervals(cdf_L1, symbols_n), _TABLE_BITS), _TABLE_BITS)
    return symbols_n


def _intervals(cdf_L1: NDArray[np.int64], symbols_n: NDArray[np.int64]) -> tuple[U64, U64]:
    starts_n = cdf_L1[symbols_n]
    return starts_n.astype(np.uint64), (cdf_L1[symbols_n + 1] - starts_n).astype(np.uint64)
