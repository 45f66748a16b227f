"""Hidden states of student and teacher: what is compared, what learns, and what must not matter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.distill.hidden import HiddenMatching, distance
from potstill.distill.settings import HiddenStates
from potstill.model.anatomy import hidden_states, watched_blocks
from potstill.model.build import build_llama
from potstill.model.shapes import LlamaShape


def build(blocks, width, seed):
    shape = LlamaShape(blocks=blocks, width=width, mlp_width=32, heads=2, kv_heads=1, vocabulary=50)
    return build_llama(shape, seed=seed)


@pytest.fixture
def student():
    return build(2, 16, 1)


@pytest.fixture
def teacher():
    return build(4, 24, 2)


@pytest.fixture(name="tokens_BT")
def make_tokens():
    return torch.randint(50, (3, 8), generator=torch.Generator().manual_seed(3))


@pytest.fixture(name="scored_BT")
def make_scored():
    scored_BT = torch.arange(8) < torch.tensor([[7], [3], [5]])
    scored_BT[0, :2] = False  # a prompt
    return scored_BT


def matched(matching, student, tokens_BT, scored_BT):
    with watched_blocks(student, matching.student_blocks) as states:
        hidden_states(student, tokens_BT)
    return matching(states, tokens_BT, scored_BT)


def every_state(model, tokens_BT):
    """By transformers' own account; entry i + 1 is the output of block i, but the last has passed the final norm."""
    with torch.no_grad():
        return model(input_ids=tokens_BT, output_hidden_states=True).hidden_states


@pytest.mark.parametrize("match", ["cosine", "mse"])
def test_the_sum_is_that_of_the_scored_positions_by_hand(student, teacher, tokens_BT, scored_BT, match):
    """In float64, block by block and position by position, for blocks before the last."""
    matching = HiddenMatching(HiddenStates(match=match, blocks=((0, 1), (0, 2)), weight=0.7), student, teacher, seed=4)
    total = matched(matching, student, tokens_BT, scored_BT)
    expected = 0.0
    for projection, block in zip(matching.projections, (1, 2), strict=True):
        own_BTE = every_state(student, tokens_BT)[1].double() @ projection.weight.detach().double().T
        wanted_BTE = every_state(teacher, tokens_BT)[block + 1].double()
        for a_E, b_E in zip(own_BTE[scored_BT], wanted_BTE[scored_BT], strict=True):
            cosine = (a_E @ b_E) / (a_E.norm() * b_E.norm())
            expected += 0.7 / 2 * float(1 - cosine if match == "cosine" else ((a_E - b_E) ** 2).mean())
    assert float(total.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("match", ["cosine", "mse"])
def test_gradients_equal_float64_differences(match):
    """The distance against central differences."""
    own_PE = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted_PE = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def exact(x_PE):
        if match == "mse":
            return ((x_PE - wanted_PE) ** 2).mean(-1).sum()
        return (1 - (x_PE * wanted_PE).sum(-1) / (x_PE.norm(dim=-1) * wanted_PE.norm(dim=-1))).sum()

    leaf_PE = own_PE.float().requires_grad_()
    distance(leaf_PE, wanted_PE.float(), match).sum().backward()
    for index in range(own_PE.numel()):
        nudge_PE = torch.zeros_like(own_PE)
        nudge_PE.view(-1)[index] = 1e-6
        slope = float(exact(own_PE + nudge_PE) - exact(own_PE - nudge_PE)) / 2e-6
        assert float(leaf_PE.grad.view(-1)[index]) == pytest.approx(slope, rel=1e-4, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100.0))
def test_bounds_zero_for_equals_and_what_the_angle_ignores(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    own_PE, wanted_PE = torch.randn(4, 6, generator=generator), torch.randn(4, 6, generator=generator)
    cosine_P = distance(own_PE, wanted_PE, "cosine")
    assert (cosine_P >= -1e-6).all()
    assert (cosine_P <= 2 + 1e-6).all()
    assert (distance(own_PE, wanted_PE, "mse") > 0).all()
    torch.testing.assert_close(distance(own_PE * scale, wanted_PE, "cosine"), cosine_P, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(distance(own_PE, own_PE, "cosine"), torch.zeros(4), rtol=0, atol=1e-6)
    assert (distance(own_PE, own_PE, "mse") == 0).all()


def test_states_of_zero_have_finite_gradients():
    leaf_PE = torch.zeros(2, 4, requires_grad=True)
    distance(leaf_PE, torch.ones(2, 4), "cosine").sum().backward()
    assert leaf_PE.grad.isfinite().all()


def test_student_and_projections_learn_and_the_teacher_does_not(student, teacher, tokens_BT, scored_BT):
    matching = HiddenMatching(HiddenStates(), student, teacher, seed=4)
    matched(matching, student, tokens_BT, scored_BT).backward()
    assert all(projection.weight.grad.abs().sum() > 0 for projection in matching.projections)
    assert student.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert {name for name, _ in matching.named_parameters()} == {"projections.0.weight", "projections.1.weight"}


def test_the_projections_come_from_the_seed_alone(student, teacher):
    same, again, other = (HiddenMatching(HiddenStates(), student, teacher, seed=seed) for seed in (4, 4, 5))
    torch.manual_seed(0)
    weights = [matching.projections[0].weight for matching in (same, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(same.projections[0].weight, same.projections[1].weight)


def test_padding_split_and_order_of_rows_mean_nothing(student, teacher, tokens_BT, scored_BT):
    matching = HiddenMatching(HiddenStates(match="mse"), student, teacher, seed=4)
    whole = matched(matching, student, tokens_BT, scored_BT)
    wide_BT = torch.nn.functional.pad(tokens_BT, (0, 5), value=9)
    wide_scored_BT = torch.nn.functional.pad(scored_BT, (0, 5))
    parts = [matched(matching, student, wide_BT[rows], wide_scored_BT[rows]) for rows in ([2], [1, 0])]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-5, atol=1e-5)


def test_nothing_scored_adds_nothing_with_a_gradient_path(student, teacher, tokens_BT, scored_BT):
    matching = HiddenMatching(HiddenStates(), student, teacher, seed=4)
    total = matched(matching, student, tokens_BT, torch.zeros_like(scored_BT))
    total.backward()
    assert float(total.detach()) == 0.0
    assert matching.projections[0].weight.grad.abs().sum() == 0


def test_no_hook_is_left_behind(student, teacher, tokens_BT, scored_BT):
    matched(HiddenMatching(HiddenStates(), student, teacher, seed=4), student, tokens_BT, scored_BT)
    for model in (student, teacher):
        assert not any(block._forward_hooks for block in model.model.layers)
