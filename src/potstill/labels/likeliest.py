"""The teacher's likeliest token, told by its place among the draws: nearly always the one drawn most often.

Shapes: n positions, N draws of each in ascending order.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["NOT_AMONG_THEM", "NUM_RANKS", "first_of_kind", "likeliest_of", "rank_among"]

NUM_RANKS = 16
NOT_AMONG_THEM = NUM_RANKS - 1


def first_of_kind(draws_nN: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
    """Which of the draws, in ascending order, differ from the one before."""
    first_nN = np.ones(draws_nN.shape, dtype=bool)
    first_nN[:, 1:] = draws_nN[:, 1:] != draws_nN[:, :-1]
    return first_nN


def rank_among(draws_nN: NDArray[np.int64], likeliest_n: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many distinct draws come before a token, most often drawn first, equals by id; 15 if it isn't among 15."""
    first_nN, counts_nN = _distinct(draws_nN)
    own_n1 = (draws_nN == likeliest_n[:, None]).sum(axis=1, keepdims=True)
    before_nN = (counts_nN > own_n1) | ((counts_nN == own_n1) & (draws_nN < likeliest_n[:, None]))
    ranks_n = (first_nN & before_nN).sum(axis=1)
    return np.where(own_n1[:, 0] > 0, np.minimum(ranks_n, NOT_AMONG_THEM), NOT_AMONG_THEM)


def likeliest_of(draws_nN: NDArray[np.int64], ranks_n: NDArray[np.int64]) -> NDArray[np.int64]:
    """The token of a rank below 15; for other ranks what comes out means nothing."""
    first_nN, counts_nN = _distinct(draws_nN)
    order_nN = np.argsort(np.where(first_nN, -counts_nN, 1), axis=1, kind="stable")
    places_n1 = np.minimum(ranks_n, draws_nN.shape[1] - 1)[:, None]
    return np.take_along_axis(draws_nN, np.take_along_axis(order_nN, places_n1, axis=1), axis=1)[:, 0]


def _distinct(draws_nN: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which draw is the first of its kind, and how often its kind was drawn."""
    counts_nN: NDArray[np.int64] = (draws_nN[:, :, None] == draws_nN[:, None, :]).sum(axis=2)
    return first_of_kind(draws_nN), counts_nN
