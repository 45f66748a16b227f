"""Draws without their order: N draws of a position are pushed on a stack as what they are, a multiset.

Written one after the other, N draws would also tell the order they came in: log2 N! bits (214 for 50 distinct draws)
that nobody needs. So the encoder lets the stack itself choose which draw comes next: it pops that choice, which costs
nothing, and the decoder, which sees what was chosen, pushes it back.

Shapes: n stacks, N draws of a position, K of them.
Source: Severo et al. 2021, "Compressing multisets with large alphabets", arXiv 2107.09202.
"""

import numpy as np
from numpy.typing import NDArray

from potstill.labels.items import Expected
from potstill.labels.stacks import Stacks

__all__ = ["pop_draws", "push_draws"]

_CHOICE = 16
"""Which of at most 2^8 draws comes next is chosen with probabilities out of 2^16."""


def push_draws(stacks: Stacks, draws_nN: NDArray[np.int64], expected: Expected) -> None:
    """Push each position's draws, given in ascending order; their order is lost.

    Cost: log2(N! / (c1! c2! ...)) bits less than the draws one by one.
    """
    rows_n = np.arange(len(draws_nN))
    left_Nn = np.ascontiguousarray(draws_nN.T, dtype=np.int32)
    columns_N1 = np.arange(len(left_Nn))[:, None]
    for remaining in range(len(left_Nn), 0, -1):
        chosen_n = np.zeros_like(rows_n)
        if remaining > 1:
            chosen_n = ((stacks.peek(len(rows_n), _CHOICE).astype(np.int64) + 1) * remaining - 1) >> _CHOICE
        drawn_n = left_Nn[chosen_n, rows_n]
        if remaining > 1:
            stacks.pop(*_choice_interval(left_Nn, drawn_n), _CHOICE)
        expected.push(stacks, drawn_n.astype(np.int64))
        left_Nn = np.where(columns_N1[: remaining - 1] < chosen_n, left_Nn[:-1], left_Nn[1:])


def pop_draws(stacks: Stacks, num_draws: int, expected: Expected) -> NDArray[np.int64]:
    """The draws that ``push_draws`` pushed last, in ascending order.

    Returns: draws_nN int64.
    """
    found_Nn = np.zeros((num_draws, len(expected.cdf_nI1)), dtype=np.int32)
    for number in range(num_draws):
        found_Nn[number] = expected.pop(stacks)
        if number:
            stacks.push(*_choice_interval(found_Nn[: number + 1], found_Nn[number]), _CHOICE)
    return np.sort(found_Nn.T, axis=1).astype(np.int64)


def _choice_interval(
    draws_Kn: NDArray[np.int32], drawn_n: NDArray[np.int32]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The interval, out of 2^16, of choosing from K draws any of those that are equal to the chosen one."""
    before_n = np.add.reduce(draws_Kn < drawn_n, axis=0, dtype=np.uint16).astype(np.uint64)
    equal_n = np.add.reduce(draws_Kn == drawn_n, axis=0, dtype=np.uint16).astype(np.uint64)
    bits, num_draws = np.uint64(_CHOICE), np.uint64(len(draws_Kn))
    start_n = (before_n << bits) // num_draws
    return start_n, ((before_n + equal_n) << bits) // num_draws - start_n
