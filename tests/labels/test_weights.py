"""Importance weights: levels whose mean is the weight, and a stack that gives them back."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.labels.stacks import Stacks
from potstill.labels.weights import NUM_WEIGHTS, levels_of_weights, pop_weights, push_weights, weight_of_level


@pytest.mark.parametrize("nats", [-1000.0, -24.0, -23.9, -23.875, -3.3, -0.01, 0.0, 0.06, 2.0, 39.8, 39.875])
def test_the_mean_over_all_uniforms_is_the_weight(nats):
    """Not a simulation: a level is right for a share of the uniforms, and a fine grid of them finds it."""
    uniforms_n1 = (torch.arange(10_000, dtype=torch.float64) + 0.5).unsqueeze(1) / 10_000
    levels_n = levels_of_weights(torch.full((10_000, 1), nats, dtype=torch.float64), uniforms_n1)[:, 0]
    assert levels_n.max() - levels_n.min() <= 1
    mean = weight_of_level(levels_n.numpy().astype(np.uint16)).astype(np.float64).mean()
    assert mean == pytest.approx(math.exp(nats), rel=2e-4, abs=1e-14)


def test_a_weight_that_nobody_draws_is_the_highest():
    levels_11 = levels_of_weights(torch.tensor([[60.0]], dtype=torch.float64), torch.tensor([[0.999]]))
    assert levels_11.item() == NUM_WEIGHTS - 1


@settings(max_examples=50, deadline=None)
@given(num_stacks=st.integers(1, 5), num_draws=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_levels_come_back_at_the_first_of_equal_draws_and_cost_nothing_at_the_others(num_stacks, num_draws, seed):
    generator = np.random.default_rng(seed)
    draws_nN = np.sort(generator.integers(0, 6, (num_stacks, num_draws)), axis=1)
    levels_nN = generator.integers(0, NUM_WEIGHTS, (num_stacks, 6))[np.arange(num_stacks)[:, None], draws_nN]
    cdf_L1 = np.arange(NUM_WEIGHTS + 1) * (2**16 // NUM_WEIGHTS)
    seeds_n = generator.integers(0, 2**62, num_stacks).astype(np.uint64)
    stacks = Stacks.seeded(seeds_n)
    push_weights(stacks, draws_nN, levels_nN, cdf_L1)
    first_nN = np.diff(draws_nN, axis=1, prepend=-1) != 0
    bits = (np.array([len(encoded) for encoded in stacks.to_bytes()]) - 8) * 8
    assert (bits <= 9 * first_nN.sum(axis=1) + 32).all()
    assert np.array_equal(pop_weights(stacks, draws_nN, cdf_L1), np.where(first_nN, levels_nN, 0))
    assert stacks.hold_only(seeds_n).all()
