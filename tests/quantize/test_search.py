"""Searched scales: never worse than rounding to nearest, against an exhaustive float64 search over each group."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from potstill.quantize.grids import dequantize, quantize_int4, quantize_int8
from potstill.quantize.methods import round_by_search
from potstill.quantize.placement import Grid
from potstill.quantize.search import code_range, codes_for, nearest_scales, search_scales

GRIDS = [Grid("int4", 32), Grid("int4", 128), Grid("int8", 32), Grid("int8")]


def weighted_error(weight, back, importance):
    return (importance * np.square(weight.astype(np.float64) - back)).reshape(len(weight), -1, 32).sum(-1)


def best_by_brute_force(group, importance, low, high):
    """The least error of any of 40,000 scales of either sign."""
    reach = np.abs(group).max()
    scales = np.concatenate([sign * np.linspace(reach / high / 3, reach / high * 1.5, 20_000) for sign in (1, -1)])
    codes = np.clip(np.round(group / scales[:, None]), low, high)
    return (importance * np.square(group - codes * scales[:, None])).sum(-1).min()


def test_the_error_is_near_the_least_that_any_scale_gives():
    generator = np.random.default_rng(0)
    grid = Grid("int4", 32)
    groups = generator.normal(size=(20, 1, 32))
    importance = generator.random((1, 32)) ** 4
    scales = search_scales(torch.from_numpy(groups), torch.from_numpy(importance), grid)
    back = (codes_for(torch.from_numpy(groups), scales, grid) * scales[..., None]).numpy()
    ours = (importance * np.square(groups - back)).sum(-1)[:, 0]
    least = np.array([best_by_brute_force(group[0], importance[0], *code_range(grid)) for group in groups])
    nearest = nearest_scales(torch.from_numpy(groups), grid)
    rounded = (codes_for(torch.from_numpy(groups), nearest, grid) * nearest[..., None]).numpy()
    plain = (importance * np.square(groups - rounded)).sum(-1)[:, 0]
    assert (ours <= plain + 1e-12).all()
    assert ours.sum() < 1.1 * least.sum()
    assert least.sum() < 0.95 * plain.sum(), "there is something to find"


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float32, (3, 64), elements=st.floats(-4, 4, width=32)),
    hnp.arrays(np.float64, 64, elements=st.floats(0, 10)),
    st.sampled_from(["int4", "int8"]),
)
def test_no_group_is_worse_than_rounded_to_nearest(weight, importance, name):
    quantize = quantize_int4 if name == "int4" else quantize_int8
    coded = round_by_search(torch.from_numpy(weight).double(), Grid(name, 32), torch.from_numpy(importance))
    ours = weighted_error(weight, dequantize(coded), importance)
    theirs = weighted_error(weight, dequantize(quantize(weight)), importance)
    assert (ours <= theirs * (1 + 1e-6) + 1e-12).all()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_codes_stay_in_range_and_scales_are_float16_s(grid):
    weight = torch.from_numpy(np.random.default_rng(1).standard_t(2, size=(8, 256)).astype(np.float32))
    coded = round_by_search(weight, grid, None)
    low, high = code_range(grid)
    assert coded.codes_OI.min() >= low
    assert coded.codes_OI.max() <= high
    assert coded.scales_OG.dtype == np.float16
    assert coded.scales_OG.shape == (8, 256 // (grid.group or 256))


def test_a_group_that_never_sees_an_input_is_rounded_to_nearest():
    weight = torch.from_numpy(np.random.default_rng(2).normal(size=(4, 64)).astype(np.float32))
    importance = torch.cat([torch.zeros(32), torch.ones(32)])
    scales = search_scales(weight.reshape(4, 2, 32), importance.reshape(2, 32), Grid("int4", 32))
    nearest = nearest_scales(weight.reshape(4, 2, 32), Grid("int4", 32))
    assert torch.equal(scales[:, 0], nearest[:, 0])
    assert not torch.equal(scales[:, 1], nearest[:, 1])


def test_weights_too_small_for_a_float16_scale_become_zero_and_never_nan():
    coded = round_by_search(torch.full((2, 32), 1e-30), Grid("int4", 32), None)
    assert not coded.scales_OG.any()
    assert not coded.codes_OI.any()
