"""Shapes for a budget: near it, well proportioned, and refused in words where nothing fits."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from potstill.core.errors import RecipeError
from potstill.model.build import build_llama
from potstill.model.shapes import LlamaShape, shape_for_budget, smallest_shape


@settings(deadline=None)
@given(st.integers(2048, 150_000), st.floats(1.0, 1e5), st.booleans())
def test_any_budget_that_fits_is_met_within_3_percent(vocabulary: int, times_smallest: float, tied: bool):
    budget = min(round(smallest_shape(vocabulary, tied=tied).parameters * times_smallest), 20_000_000_000)
    shape = shape_for_budget(budget, vocabulary, tied=tied)
    assert abs(shape.parameters / budget - 1) <= 0.03


@settings(deadline=None)
@given(st.integers(2, 50_000), st.integers(20_000_000, 1_000_000_000))
def test_shapes_divide_into_heads_and_quantization_groups(vocabulary: int, budget: int):
    shape = shape_for_budget(budget, vocabulary)
    assert shape.width % 32 == 0
    assert shape.mlp_width % 32 == 0
    assert shape.head_width in (32, 64)
    assert shape.heads % shape.kv_heads == 0


@pytest.mark.parametrize(
    ("budget", "vocabulary", "width", "blocks"),
    [
        (110_000_000, 8192, 768, (12, 16)),
        (110_000_000, 32_000, 768, (12, 13)),
        (10_000_000, 8192, 256, (8, 10)),
        (1_000_000, 2048, 128, (4, 5)),
        (3_000_000, 4096, 192, (4, 6)),
        (500_000, 4096, 64, (3, 5)),
    ],
)
def test_usual_budgets_get_usual_proportions(budget: int, vocabulary: int, width: int, blocks: tuple[int, int]):
    shape = shape_for_budget(budget, vocabulary)
    assert shape.width == width
    assert blocks[0] <= shape.blocks <= blocks[1]
    assert 2.0 <= shape.mlp_width / shape.width <= 4.0


@pytest.mark.parametrize(
    "shape",
    [
        LlamaShape(3, 64, 96, 2, 1, 100, tied=True),
        LlamaShape(2, 64, 160, 2, 2, 50, tied=False),
        shape_for_budget(300_000, 512),
    ],
)
def test_parameters_are_those_of_the_real_model(shape: LlamaShape):
    model: LlamaForCausalLM = build_llama(shape, seed=0)
    assert sum(weight.numel() for weight in model.parameters()) == shape.parameters


def test_a_budget_below_the_vocabulary_is_refused_with_the_smallest_that_fits():
    with pytest.raises(RecipeError) as caught:
        shape_for_budget(200_000, 8192)
    smallest = smallest_shape(8192).parameters
    assert str(smallest) in str(caught.value)
    assert shape_for_budget(smallest, 8192) == smallest_shape(8192)


def test_planning_a_shape_imports_no_torch():
    code = "import sys, potstill.model.shapes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
