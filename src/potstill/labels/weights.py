"""Importance weights of draws: what makes draws from one distribution an unbiased estimate of another.

A token drawn from q counts with p / q, where p is the distribution that is wanted: on average over the draws it then
counts with p. A weight is kept as one of 512 levels, rounded up or down at random so that its mean is the weight.

Shapes: n positions, N draws of each in ascending order, L levels.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.labels.likeliest import first_of_kind
from potstill.labels.stacks import Stacks
from potstill.labels.tables import pop_symbols, push_symbols

__all__ = ["NUM_WEIGHTS", "levels_of_weights", "pop_weights", "push_weights", "weight_of_level"]

NUM_WEIGHTS = 512

_LEVELS_PER_NAT = 8
_LOWEST_NATS = -24.0


def weight_of_level(levels: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The weights that levels stand for: 0, then exp(level / 8 - 24), up to exp(39.875)."""
    return _WEIGHTS_L[levels].astype(np.float32)


def levels_of_weights(log_weights_nN: Tensor, uniforms_n1: Tensor) -> Tensor:
    """The level below or above each weight, so that the mean over the uniforms is the weight.

    A weight beyond the highest level, 2e17, becomes that one. To draw such a token has a probability of 1 in 2e17 at
    most, whatever the two distributions are.

    Shapes: log_weights_nN float64, nats; uniforms_n1 float64 in [0, 1), one for all draws of a position, so that equal
    draws have equal levels.
    Returns: int64 [n, N].
    """
    weights_L = torch.from_numpy(_WEIGHTS_L).to(log_weights_nN.device)
    below_nN = ((log_weights_nN - _LOWEST_NATS) * _LEVELS_PER_NAT).floor().clamp(0, NUM_WEIGHTS - 2).long()
    below_nN = below_nN.where(log_weights_nN > _LOWEST_NATS + 1 / _LEVELS_PER_NAT, 0)
    low_nN, high_nN = weights_L[below_nN], weights_L[below_nN + 1]
    up_nN = uniforms_n1 * (high_nN - low_nN) < log_weights_nN.exp() - low_nN
    return below_nN + up_nN.long()


def push_weights(
    stacks: Stacks, draws_nN: NDArray[np.int64], levels_nN: NDArray[np.int64], cdf_L1: NDArray[np.int64]
) -> None:
    """Push the level of each distinct draw; equal draws have one."""
    first_nN = first_of_kind(draws_nN)
    for place in reversed(range(draws_nN.shape[1])):
        push_symbols(stacks, levels_nN[:, place], cdf_L1, first_nN[:, place])


def pop_weights(stacks: Stacks, draws_nN: NDArray[np.int64], cdf_L1: NDArray[np.int64]) -> NDArray[np.int64]:
    """The levels that ``push_weights`` pushed last, at the first of equal draws; 0 at the others."""
    levels_nN = np.zeros_like(draws_nN)
    first_nN = first_of_kind(draws_nN)
    for place in range(draws_nN.shape[1]):
        wanted_n = first_nN[:, place]
        levels_nN[:, place] = np.where(wanted_n, pop_symbols(stacks, len(draws_nN), cdf_L1, wanted_n), 0)
    return levels_nN


def _weights() -> NDArray[np.float64]:
    exact = [0.0] + [math.exp(level / _LEVELS_PER_NAT + _LOWEST_NATS) for level in range(1, NUM_WEIGHTS)]
    return np.array(exact, dtype=np.float64)


_WEIGHTS_L = _weights()
