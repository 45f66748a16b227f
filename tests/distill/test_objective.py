"""The objective: sums that don't depend on how the positions are cut."""

import pytest
import torch

from potstill.core.errors import BugError
from potstill.distill.divergences import cross_entropy, forward_kl
from potstill.distill.objective import TOTAL, Objective, objective_from_hidden
from potstill.distill.settings import CrossEntropy, ForwardKl
from potstill.labels.kinds import DenseLabels, TopKLabels


@pytest.fixture(name="hidden_PD")
def make_hidden():
    return torch.randn(11, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(name="head_VD")
def make_head():
    return torch.randn(30, 6, generator=torch.Generator().manual_seed(2))


@pytest.fixture(name="targets_P")
def make_targets():
    return torch.randint(30, (11,), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def dense():
    return DenseLabels(torch.randn(11, 30, generator=torch.Generator().manual_seed(4)).log_softmax(-1))


@pytest.fixture
def top_k(dense):
    logprobs_PK, ids_PK = dense.logprobs_PV.topk(4)
    return TopKLabels(ids_PK, logprobs_PK, 1 - logprobs_PK.exp().sum(-1))


def test_the_total_is_the_weighted_sum_of_the_named_losses(hidden_PD, head_VD, top_k, targets_P):
    objective = Objective([ForwardKl(weight=0.7), CrossEntropy(weight=0.2)])
    logits_PV = hidden_PD @ head_VD.T
    sums = objective(logits_PV, top_k, targets_P)
    assert objective.names == ("forward_kl", "cross_entropy")
    assert list(sums) == ["forward_kl", "cross_entropy", TOTAL]
    torch.testing.assert_close(sums["forward_kl"], forward_kl(logits_PV, top_k).sum())
    torch.testing.assert_close(sums["cross_entropy"], cross_entropy(logits_PV, targets_P).sum())
    torch.testing.assert_close(sums[TOTAL], 0.7 * sums["forward_kl"] + 0.2 * sums["cross_entropy"])


@pytest.mark.parametrize("chunk", [1, 3, 10, 11, 100])
def test_chunks_change_neither_value_nor_gradient(hidden_PD, head_VD, top_k, targets_P, chunk):
    objective = Objective([ForwardKl(), CrossEntropy(weight=0.5)])
    results = []
    for size in (chunk, len(hidden_PD)):
        leaves = hidden_PD.clone().requires_grad_(), head_VD.clone().requires_grad_()
        sums = objective_from_hidden(objective, leaves[0], lambda x, w=leaves[1]: x @ w.T, top_k, targets_P, chunk=size)
        results.append((sums, torch.autograd.grad(sums[TOTAL], leaves)))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_a_micro_batch_of_nothing_adds_nothing_and_has_a_gradient_path(hidden_PD, head_VD, top_k, targets_P):
    leaf_PD = hidden_PD[:0].clone().requires_grad_()
    sums = objective_from_hidden(
        Objective([ForwardKl(), CrossEntropy()]),
        leaf_PD,
        lambda x: x @ head_VD.T,
        top_k.at(slice(0, 0)),
        targets_P[:0],
        chunk=4,
    )
    assert sums[TOTAL] == 0.0
    sums[TOTAL].backward()


def test_temperature_softens_both_sides_and_keeps_the_gradients_scale(hidden_PD, head_VD, dense, targets_P):
    """The entry is KL of the softened distributions; the total carries τ²."""
    logits_PV = hidden_PD @ head_VD.T
    sums = Objective([ForwardKl(temperature=2.5)])(logits_PV, dense, targets_P)
    teacher_PV = (dense.logprobs_PV.double() / 2.5).log_softmax(-1)
    student_PV = (logits_PV.double() / 2.5).log_softmax(-1)
    expected = (teacher_PV.exp() * (teacher_PV - student_PV)).sum().float()
    torch.testing.assert_close(sums["forward_kl"], expected)
    torch.testing.assert_close(sums[TOTAL], expected * 2.5**2)


def test_what_check_losses_should_have_refused_is_a_bug(hidden_PD, head_VD, top_k, targets_P):
    logits_PV = hidden_PD @ head_VD.T
    with pytest.raises(BugError, match="none were given"):
        Objective([ForwardKl()])(logits_PV, None, targets_P)
    with pytest.raises(BugError, match="dense"):
        Objective([ForwardKl(temperature=2.0)])(logits_PV, top_k, targets_P)
