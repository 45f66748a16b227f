"""Students: the same shape however they start, and a teacher's sense of words that survives projection."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from potstill.core.errors import InputError, RecipeError
from potstill.distill.student import build_student, project_embeddings
from potstill.model.build import build_llama
from potstill.model.shapes import LlamaShape, shape_for_budget

VOCABULARY = 512


@pytest.fixture
def teacher() -> LlamaForCausalLM:
    """A teacher whose embeddings have structure: few strong directions and noise."""
    model = build_llama(LlamaShape(1, 192, 64, 6, 6, VOCABULARY), seed=5)
    generator = torch.Generator().manual_seed(0)
    strong = torch.randn(VOCABULARY, 12, generator=generator) @ torch.randn(12, 192, generator=generator)
    with torch.no_grad():
        model.model.embed_tokens.weight.add_(strong)
    return model


def student(start, teacher, *, vocabulary: int = VOCABULARY, seed: int = 0) -> LlamaForCausalLM:
    return build_student(250_000, start=start, teacher=teacher, vocabulary=vocabulary, seed=seed)


def gram_error(table_VE: torch.Tensor, teacher_VD: torch.Tensor) -> float:
    """Relative error of the table's dot products, at the best common factor."""
    mine, theirs = table_VE @ table_VE.T, teacher_VD @ teacher_VD.T
    factor = (mine * theirs).sum() / mine.square().sum()
    return float((factor * mine - theirs).norm() / theirs.norm())


def test_from_scratch_is_a_fresh_llama_of_the_budget():
    fresh = build_llama(shape_for_budget(250_000, VOCABULARY), seed=7)
    built = student("scratch", None, seed=7)
    assert all(torch.equal(built.state_dict()[name], weight) for name, weight in fresh.state_dict().items())


def test_both_ways_share_the_shape_and_differ_in_the_embeddings_only(teacher):
    scratch, taught = student("scratch", None).state_dict(), student("teacher", teacher).state_dict()
    differing = {name for name, weight in scratch.items() if not torch.equal(weight, taught[name])}
    assert differing == {"model.embed_tokens.weight", "lm_head.weight"}


def test_the_same_seed_and_teacher_give_the_same_student(teacher):
    first, second, other = (student("teacher", teacher, seed=seed).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_head_stays_tied_and_the_scale_is_that_of_fresh_weights(teacher):
    built = student("teacher", teacher)
    assert built.lm_head.weight is built.model.embed_tokens.weight
    assert float(built.lm_head.weight.detach().square().mean().sqrt()) == pytest.approx(0.02, rel=1e-4)
    assert built.lm_head.weight.requires_grad


def test_dot_products_are_kept_far_better_than_by_random_projection(teacher):
    table_VD = teacher.model.embed_tokens.weight.detach()
    taught = student("teacher", teacher).model.embed_tokens.weight.detach()
    random_DE = torch.randn(192, taught.shape[1], generator=torch.Generator().manual_seed(1))
    assert gram_error(taught, table_VD) < 0.01
    assert gram_error(taught, table_VD) < 0.1 * gram_error(table_VD @ random_DE, table_VD)


@settings(max_examples=20, deadline=None)
@given(width=st.integers(1, 48), seed=st.integers(0, 1000))
def test_projection_is_the_best_approximation_of_its_rank(width: int, seed: int):
    table_VD = torch.randn(60, 32, generator=torch.Generator().manual_seed(seed))
    projected = project_embeddings(table_VD, width, seed=seed)
    assert projected.shape == (60, min(width, 32))
    singular = torch.linalg.svdvals(table_VD.double())
    best = (singular[width:] ** 4).sum().sqrt() / (singular**4).sum().sqrt()
    scaled = projected.double() * (singular[:width].square().sum().sqrt() / projected.double().norm())
    error = (scaled @ scaled.T - table_VD.double() @ table_VD.double().T).norm() / (singular**4).sum().sqrt()
    assert float(error) == pytest.approx(float(best), abs=1e-5)


def test_no_column_drowns_the_others(teacher):
    columns_E = student("teacher", teacher).model.embed_tokens.weight.detach().square().mean(0).sqrt()
    assert float(columns_E.max() / columns_E.min()) < 5


def test_rows_that_only_pad_the_teachers_table_are_left_out(teacher):
    built = student("teacher", teacher, vocabulary=VOCABULARY - 12)
    assert built.config.vocab_size == VOCABULARY - 12


@pytest.mark.parametrize("vocabulary", [VOCABULARY + 1, 4 * VOCABULARY])
def test_another_vocabulary_is_refused_with_a_way_out(teacher, vocabulary: int):
    with pytest.raises(InputError, match=r"(?s)vocabulary of.*start from scratch"):
        student("teacher", teacher, vocabulary=vocabulary)


def test_a_budget_that_the_vocabulary_eats_is_refused():
    with pytest.raises(RecipeError, match="too few"):
        build_student(100_000, start="scratch", teacher=None, vocabulary=8192, seed=0)
