"""GPTQ against a slow reference that inverts the Hessian of the columns still to come, column by column, in float64."""

import numpy as np
import pytest
import torch

from potstill.quantize.gptq import gptq, invertible
from potstill.quantize.placement import Grid
from potstill.quantize.scaling import output_error, rounded_to_nearest
from potstill.quantize.search import code_range, search_scales

GRIDS = [Grid("int4", 32), Grid("int4", 128), Grid("int8", 32), Grid("int8")]


def correlated_inputs(positions, columns, seed=0):
    """Inputs whose columns depend on each other and differ in size, as those of real models."""
    generator = np.random.default_rng(seed)
    mixed = generator.normal(size=(positions, columns // 4)) @ generator.normal(size=(columns // 4, columns))
    return torch.from_numpy((mixed + 0.3 * generator.normal(size=mixed.shape)) * generator.lognormal(size=columns))


def problem(grid, seed=0, rows=24, columns=256):
    inputs = correlated_inputs(600, columns, seed)
    weight = torch.from_numpy(np.random.default_rng(seed + 1).normal(size=(rows, columns)))
    return weight, inputs.T @ inputs, grid


def back(rounded, grid):
    groups = rounded.codes_OI.reshape(len(rounded.codes_OI), -1, grid.group or rounded.codes_OI.shape[1])
    return (groups * rounded.scales_OG[..., None]).reshape(rounded.codes_OI.shape)


def slow_gptq(weight, hessian, grid, damping, activation_order):
    """Round the next column, then solve for the columns still to come; nothing shared with the implementation."""
    columns = weight.shape[1]
    group = grid.group or columns
    diagonal = hessian.diagonal()
    order = torch.argsort(diagonal, descending=True, stable=True) if activation_order else torch.arange(columns)
    damped = hessian + damping * diagonal.mean() * torch.eye(columns, dtype=torch.float64)
    current, codes = weight.clone(), torch.zeros_like(weight)
    importance = diagonal.reshape(-1, group)
    scales = search_scales(weight.reshape(len(weight), -1, group), importance, grid)
    low, high = code_range(grid)
    for place, column in enumerate(order.tolist()):
        number = column // group
        if not activation_order and group <= 128 and column % group == 0:
            now = current[:, column : column + group].unsqueeze(1)
            scales[:, number] = search_scales(now, importance[number : number + 1], grid)[:, 0]
        codes[:, column] = (current[:, column] / scales[:, number]).round().clamp(low, high)
        error = codes[:, column] * scales[:, number] - current[:, column]
        later = order[place + 1 :]
        current[:, column] = codes[:, column] * scales[:, number]
        if len(later):
            moves = torch.linalg.solve(damped[later][:, later], damped[later, column])
            current[:, later] -= error[:, None] * moves
    return codes, scales


@pytest.mark.parametrize("activation_order", [True, False])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_codes_are_those_of_the_slow_reference(grid, activation_order):
    weight, hessian, grid = problem(grid)
    rounded = gptq(weight.clone(), hessian, grid, activation_order=activation_order, damping=0.01)
    codes, scales = slow_gptq(weight, hessian, grid, 0.01, activation_order)
    assert torch.equal(rounded.scales_OG, scales)
    assert torch.equal(rounded.codes_OI, codes)
    assert (rounded.damping, rounded.num_dead) == (0.01, 0)


@pytest.mark.parametrize("activation_order", [True, False])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_error_of_the_outputs_is_well_below_that_of_rounding_to_nearest(grid, activation_order):
    weight, hessian, grid = problem(grid, seed=5)
    rounded = gptq(weight.float(), hessian, grid, activation_order=activation_order, damping=0.01)
    ours = output_error(weight, back(rounded, grid).double(), hessian)
    assert ours < 0.6 * output_error(weight, rounded_to_nearest(weight, grid), hessian)


def test_dead_columns_are_rounded_to_nearest_and_move_nothing():
    weight, hessian, grid = problem(Grid("int4", 32))
    dead = torch.arange(256) % 7 == 0
    hessian[dead] = 0
    hessian[:, dead] = 0
    for activation_order in (True, False):
        rounded = gptq(weight, hessian, grid, activation_order=activation_order, damping=0.01)
        assert rounded.num_dead == int(dead.sum())
        scales = rounded.scales_OG.repeat_interleave(32, 1)
        expected = (weight / scales).round().clamp(-8, 7)
        assert torch.equal(rounded.codes_OI[:, dead], expected[:, dead])


def test_a_hessian_of_zeros_is_rounding_to_nearest():
    weight, hessian, grid = problem(Grid("int4", 32))
    rounded = gptq(weight, torch.zeros_like(hessian), grid, activation_order=True, damping=0.01)
    assert rounded.num_dead == 256
    assert torch.equal(back(rounded, grid), rounded_to_nearest(weight, grid))


def test_a_singular_hessian_is_damped_more_until_it_has_a_factor():
    """One input direction only, and a diagonal so uneven that the first dampings leave it singular in float64."""
    direction = torch.ones(64, dtype=torch.float64)
    hessian = 1e6 * torch.outer(direction, direction)
    assert invertible(hessian, 1e-18)[1] > 1e-18
    upper, used = invertible(hessian, 0.01)
    assert used == 0.01
    damped = hessian / 1e6 + 0.01 * torch.eye(64, dtype=torch.float64)
    torch.testing.assert_close(upper.T @ upper, torch.linalg.inv(damped))
    weight = torch.from_numpy(np.random.default_rng(0).normal(size=(8, 64)))
    rounded = gptq(weight, hessian, Grid("int4", 32), activation_order=True, damping=0.01)
    assert output_error(weight, back(rounded, Grid("int4", 32)), hessian) < 0.1 * output_error(
        weight, rounded_to_nearest(weight, Grid("int4", 32)), hessian
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_hessian_that_is_not_finite_is_given_back(value):
    weight, hessian, grid = problem(Grid("int4", 32))
    hessian[3, 5] = value
    assert gptq(weight, hessian, grid, activation_order=True, damping=0.01) is None
