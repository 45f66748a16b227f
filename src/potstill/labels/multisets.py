"""Draws without their order: N draws of a position are pushed on a stack as what they are, a multiset.

Written one after the other, N draws would also tell the order they came in: log2 N! bits (214 for 50 distinct draws)
that nobody needs. So the encoder lets the stack itself choose which draw comes next: it pops that choice, which costs
nothing, and the decoder, which sees what was chosen, pushes it back.

Shapes: n stacks, N draws of a position, V vocabulary.
Source: Severo et al. 2021, "Compressing multisets with large alphabets", arXiv 2107.09202.
"""

import numpy as np
from numpy.typing import NDArray

from potstill.labels.stacks import PRECISION, Stacks

__all__ = ["pop_draws", "push_draws"]

_CHOICE = 16
"""Which of at most 2^8 draws comes next is chosen with probabilities out of 2^16."""


def push_draws(stacks: Stacks, draws_nN: NDArray[np.int64], cdf_nV1: NDArray[np.int64]) -> None:
    """Push each position's draws; their order is lost.

    Shapes: draws_nN token ids in ascending order; cdf_nV1 the prior's cumulative frequencies, from 0 to 2^28, each
    token's at least 1.
    Cost: log2(N! / (c1! c2! ...)) bits less than the draws one by one.
    """
    rows_n = np.arange(len(draws_nN))
    left_nN = draws_nN
    num_draws = draws_nN.shape[1]
    for remaining in range(num_draws, 0, -1):
        if remaining > 1:
            top_n = stacks.peek(len(left_nN), _CHOICE).astype(np.int64)
            chosen_n = ((top_n + 1) * remaining - 1) >> _CHOICE
            drawn_n = left_nN[rows_n, chosen_n]
            starts_n, frequencies_n = _choice_interval(left_nN, drawn_n, remaining)
            stacks.pop(starts_n, frequencies_n, _CHOICE)
        else:
            chosen_n = np.zeros_like(rows_n)
            drawn_n = left_nN[:, 0]
        starts_n = cdf_nV1[rows_n, drawn_n]
        frequencies_n = cdf_nV1[rows_n, drawn_n + 1] - starts_n
        stacks.push(starts_n.astype(np.uint64), frequencies_n.astype(np.uint64))
        left_nN = _without(left_nN, chosen_n)


def pop_draws(stacks: Stacks, num_draws: int, cdf_nV1: NDArray[np.int64]) -> NDArray[np.int64]:
    """The draws that ``push_draws`` pushed last, in ascending order.

    Shapes: cdf_nV1 as when they were pushed.
    Returns: draws_nN int64.
    """
    num_stacks, vocabulary = cdf_nV1.shape[0], cdf_nV1.shape[1] - 1
    rows_n = np.arange(num_stacks)
    flat = (cdf_nV1[:, :-1] + (rows_n << PRECISION)[:, None]).ravel()
    found_nN = np.full((num_stacks, 0), 0, dtype=np.int64)
    for remaining in range(1, num_draws + 1):
        keys_n = stacks.peek(num_stacks).astype(np.int64) + (rows_n << PRECISION)
        drawn_n = np.searchsorted(flat, keys_n, side="right") - 1 - rows_n * vocabulary
        starts_n = cdf_nV1[rows_n, drawn_n]
        frequencies_n = cdf_nV1[rows_n, drawn_n + 1] - starts_n
        stacks.pop(starts_n.astype(np.uint64), frequencies_n.astype(np.uint64))
        found_nN = _with(found_nN, drawn_n)
        if remaining > 1:
            stacks.push(*_choice_interval(found_nN, drawn_n, remaining), _CHOICE)
    return found_nN


def _choice_interval(
    sorted_nN: NDArray[np.int64], drawn_n: NDArray[np.int64], remaining: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The interval, out of 2^16, of choosing any of the draws that are equal to the chosen one."""
    before_n = (sorted_nN < drawn_n[:, None]).sum(axis=1)
    through_n = (sorted_nN <= drawn_n[:, None]).sum(axis=1)
    start_n, end_n = ((number_n << _CHOICE) // remaining for number_n in (before_n, through_n))
    return start_n.astype(np.uint64), (end_n - start_n).astype(np.uint64)


def _without(sorted_nN: NDArray[np.int64], chosen_n: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each row without one of its entries."""
    columns_N = np.arange(sorted_nN.shape[1] - 1)
    return np.where(columns_N < chosen_n[:, None], sorted_nN[:, :-1], sorted_nN[:, 1:])


def _with(sorted_nN: NDArray[np.int64], added_n: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each row with one more entry, in order."""
    added_n1 = added_n[:, None]
    low_nN = np.pad(sorted_nN, ((0, 0), (0, 1)), constant_values=np.iinfo(np.int64).max)
    high_nN = np.concatenate([added_n1, sorted_nN], axis=1)
    moved_nN: NDArray[np.int64] = np.minimum(low_nN, np.maximum(high_nN, added_n1))  # below the added one as it was
    return moved_nN
