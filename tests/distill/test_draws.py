"""Cross-entropy, and the forward KL from draws: one arithmetic, unbiased in value and gradient."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.distill.divergences import cross_entropy, forward_kl
from potstill.labels.kinds import SampledLabels


def reference(logits_PV, labels):
    """Cross-entropy of the draws minus the entropy, token by token in float64."""
    totals = []
    for position in range(len(labels)):
        student_V = logits_PV[position].double().log_softmax(-1)
        total = student_V.sum() * 0.0 - labels.entropies_P[position].double()
        for token, weight in zip(labels.ids_PK[position], labels.weights_PK[position].double(), strict=True):
            total = total - weight * student_V[token]
        totals.append(total)
    return torch.stack(totals)


@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0])
@pytest.mark.parametrize("draws", [1, 16, 50])
def test_draws_equal_the_reference_in_value_and_gradient(cases, spread, draws):
    labels = cases.sampled(cases.logits(1, 4, 200, spread), draws, seed=3)
    logits_PV = cases.logits(2, 4, 200, spread)
    nats_P, gradient_PV = cases.value_and_gradient(forward_kl, logits_PV, labels)
    expected_P, expected_PV = cases.value_and_gradient(reference, logits_PV, labels)
    torch.testing.assert_close(nats_P.double(), expected_P, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient_PV, expected_PV, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("total", [0.0, 0.3, 7.0])
def test_importance_weights_need_not_sum_to_one(cases, total):
    """The estimate is linear in the weights, and so are its value and its gradient."""
    drawn = cases.sampled(cases.logits(1, 4, 200, 1.0), 16, seed=3)
    labels = SampledLabels(drawn.ids_PK, drawn.weights_PK * total, drawn.entropies_P)
    logits_PV = cases.logits(2, 4, 200, 1.0)
    nats_P, gradient_PV = cases.value_and_gradient(forward_kl, logits_PV, labels)
    expected_P, expected_PV = cases.value_and_gradient(reference, logits_PV, labels)
    torch.testing.assert_close(nats_P.double(), expected_P, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient_PV, expected_PV, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spread", [0.01, 3.0, 30.0])
def test_cross_entropy_equals_the_reference_in_value_and_gradient(cases, spread):
    logits_PV = cases.logits(2, 6, 300, spread)
    targets_P = torch.tensor([0, 299, 5, 5, 17, 80])
    nats_P, gradient_PV = cases.value_and_gradient(cross_entropy, logits_PV, targets_P)
    expected_P, expected_PV = cases.value_and_gradient(
        lambda x: torch.nn.functional.cross_entropy(x.double(), targets_P, reduction="none"), logits_PV
    )
    torch.testing.assert_close(nats_P.double(), expected_P, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient_PV, expected_PV, rtol=1e-5, atol=1e-6)


def test_the_gradient_is_softmax_minus_the_weights(cases):
    labels = cases.sampled(cases.logits(1, 5, 30, 1.0), 8, seed=2)
    leaf_PV = cases.logits(2, 5, 30, 1.0).requires_grad_()
    forward_kl(leaf_PV, labels).sum().backward()
    expected_PV = leaf_PV.detach().softmax(-1).scatter_add(-1, labels.ids_PK, -labels.weights_PK)
    torch.testing.assert_close(leaf_PV.grad, expected_PV, rtol=1e-6, atol=1e-7)


def test_the_mean_over_all_draws_is_the_full_forward_kl(cases):
    """Not a simulation: all 3^4 ways to draw 4 times from 3 tokens, each with its probability."""
    teacher_PV, logits_PV = (cases.logits(seed, 1, 3, 1.0).double() for seed in (1, 2))
    probs_V = teacher_PV.softmax(-1)[0]
    entropy_P = torch.special.entr(probs_V).sum().unsqueeze(0)
    mean_nats, mean_PV = torch.zeros(1, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64)
    for draw in product(range(3), repeat=4):
        weights_V = torch.bincount(torch.tensor(draw), minlength=3).double() / 4
        labels = SampledLabels(torch.arange(3).unsqueeze(0), weights_V.unsqueeze(0), entropy_P)
        nats_P, gradient_PV = cases.value_and_gradient(lambda x, y: 2 * forward_kl(x, y), logits_PV, labels)
        probability = probs_V[list(draw)].prod()
        mean_nats += probability * nats_P
        mean_PV += probability * gradient_PV
    log_q_PV, log_p_PV = logits_PV.log_softmax(-1), teacher_PV.log_softmax(-1)
    torch.testing.assert_close(mean_nats, 2 * (log_p_PV.exp() * (log_p_PV - log_q_PV)).sum(-1))
    torch.testing.assert_close(mean_PV, log_q_PV.exp() - log_p_PV.exp())


@settings(max_examples=40, deadline=None)
@given(vocabulary=st.integers(1, 20), draws=st.integers(1, 30), seed=st.integers(0, 10**6), padding=st.integers(1, 5))
def test_padding_changes_no_bit(cases, vocabulary, draws, seed, padding):
    """Entries of weight 0, also where token 0 was drawn and where the student rules it out."""
    labels = cases.sampled(cases.logits(seed, 2, vocabulary, 1.0), draws, seed)
    logits_PV = cases.logits(seed + 1, 2, vocabulary, 1.0)
    longer = SampledLabels(
        torch.nn.functional.pad(labels.ids_PK, (0, padding)),
        torch.nn.functional.pad(labels.weights_PK, (0, padding)),
        labels.entropies_P,
    )
    nats_P, gradient_PV = cases.value_and_gradient(forward_kl, logits_PV, labels)
    padded_P, padded_PV = cases.value_and_gradient(forward_kl, logits_PV, longer)
    torch.testing.assert_close(padded_P, nats_P, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(padded_PV, gradient_PV, rtol=1e-6, atol=1e-7)


def test_padding_with_a_token_that_the_student_rules_out_costs_nothing():
    labels = SampledLabels(torch.tensor([[2, 0]]), torch.tensor([[1.0, 0.0]]), torch.zeros(1))
    leaf_PV = torch.tensor([[-torch.inf, 0.0, 0.0]], requires_grad=True)
    nats_P = forward_kl(leaf_PV, labels)
    nats_P.sum().backward()
    torch.testing.assert_close(nats_P.detach(), torch.tensor([2.0]).log())
    torch.testing.assert_close(leaf_PV.grad, torch.tensor([[0.0, 0.5, -0.5]]))


def test_a_drawn_token_that_the_student_rules_out_is_infinitely_far_with_a_finite_gradient():
    labels = SampledLabels(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]]), torch.zeros(1))
    leaf_PV = torch.tensor([[-torch.inf, 0.0, 0.0]], requires_grad=True)
    nats_P = forward_kl(leaf_PV, labels)
    nats_P.sum().backward()
    assert nats_P.item() == torch.inf
    torch.testing.assert_close(leaf_PV.grad, torch.tensor([[-0.5, 0.0, 0.5]]))


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_logits_keep_value_and_gradient(cases, size):
    labels = cases.sampled(cases.logits(1, 3, 12, 1.0), 9, seed=1)
    logits_PV = cases.logits(2, 3, 12, 1.0)
    logits_PV[:, 5] = size
    nats_P, gradient_PV = cases.value_and_gradient(forward_kl, logits_PV, labels)
    expected_P, expected_PV = cases.value_and_gradient(reference, logits_PV, labels)
    torch.testing.assert_close(nats_P.double(), expected_P, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient_PV, expected_PV, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_computes_in_float32_and_answers_in_the_logits_own_dtype(cases, dtype):
    labels, logits_PV = cases.sampled(cases.logits(1, 3, 30, 1.0), 8, seed=1), cases.logits(2, 3, 30, 1.0).to(dtype)
    nats_P, gradient_PV = cases.value_and_gradient(forward_kl, logits_PV, labels)
    assert (nats_P.dtype, gradient_PV.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(nats_P, forward_kl(logits_PV.float(), labels))


def test_nan_logits_are_not_hidden(cases):
    logits_PV = cases.logits(1, 2, 6, 1.0)
    logits_PV[0, 4] = torch.nan
    labels = cases.sampled(cases.logits(2, 2, 6, 1.0), 3, seed=1)
    assert forward_kl(logits_PV, labels).isnan().tolist() == [True, False]
    assert cross_entropy(logits_PV, torch.tensor([0, 0])).isnan().tolist() == [True, False]


def test_nothing_scored_gives_nothing_with_a_gradient_path():
    labels = SampledLabels(torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 2), torch.zeros(0))
    logits_PV = torch.zeros(0, 5, requires_grad=True)
    (forward_kl(logits_PV, labels).sum() + cross_entropy(logits_PV, torch.zeros(0, dtype=torch.int64)).sum()).backward()
    assert logits_PV.grad.shape == (0, 5)


def test_positions_are_cut_and_moved_together(cases):
    labels = cases.sampled(cases.logits(1, 5, 9, 1.0), 4, seed=1)
    part = labels.at(slice(1, 3)).to("cpu")
    assert len(part) == 2
    assert torch.equal(part.entropies_P, labels.entropies_P[1:3])
