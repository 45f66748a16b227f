"""Activations rounded per token are what integer products see, at any size of the values."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from potstill.model.activations import round_inputs, rounded_per_token


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float32, (3, 5), elements=st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-1, 1, width=32)))
def test_every_value_is_within_half_a_step_of_its_token_and_zeros_stay(values):
    rounded = rounded_per_token(torch.from_numpy(values)).numpy().astype(np.float64)
    steps = np.abs(values.astype(np.float64)).max(-1, keepdims=True) / 127
    assert (np.abs(rounded - values) <= 0.50001 * steps + 1e-42).all()
    assert not rounded[(values == 0).all(-1)].any()


def test_a_linear_multiplies_codes_as_an_integer_runtime_does():
    """int32 sums of products of codes, times both scales, against the float emulation."""
    generator = np.random.default_rng(0)
    codes_OI, scales_O = generator.integers(-127, 128, (6, 40)), generator.random(6) + 0.1
    inputs_PI = generator.normal(size=(9, 40)).astype(np.float32)
    linear = nn.Linear(40, 6, bias=False).requires_grad_(False)
    linear.weight.copy_(torch.from_numpy(codes_OI * scales_O[:, None]))
    round_inputs(linear)
    scales_P = np.abs(inputs_PI).max(-1) / np.float32(127)
    codes_PI = np.round(inputs_PI / scales_P[:, None]).astype(np.int64)
    expected_PO = (codes_PI @ codes_OI.T) * scales_P[:, None] * scales_O
    np.testing.assert_allclose(linear(torch.from_numpy(inputs_PI)).numpy(), expected_PO, rtol=1e-5, atol=1e-4)
