"""The objective: sums that don't depend on how the positions are cut."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from potstill.core.errors import BugError
from potstill.distill.chunks import positions_at_once
from potstill.distill.divergences import cross_entropy, forward_kl
from potstill.distill.objective import TOTAL, Objective, objective_from_hidden
from potstill.distill.settings import (
    CrossEntropy,
    ForwardKl,
    JensenShannon,
    ReverseKl,
    SkewKl,
    SkewReverseKl,
    TotalVariation,
    refusal,
)
from potstill.labels.kinds import DenseLabels, TopKLabels

EVERY_LOSS = [
    ForwardKl(),
    ReverseKl(weight=0.2),
    JensenShannon(beta=0.3),
    SkewKl(alpha=0.2),
    SkewReverseKl(),
    TotalVariation(weight=2.0),
    CrossEntropy(weight=0.5),
]


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


@pytest.fixture
def sampled(cases, dense):
    return cases.sampled(dense.logprobs_PV, 6, seed=5)


def in_chunks(objective, hidden_PD, head_VD, labels, targets_P, *, chunk):
    """The sums, and the total's gradient for hidden states and head."""
    leaves = hidden_PD.clone().requires_grad_(), head_VD.clone().requires_grad_()
    sums = objective_from_hidden(
        objective,
        leaves[0],
        lambda x: x @ leaves[1].T,
        labels,
        targets_P,
        head_parameters=[leaves[1]],
        chunk=chunk,
    )
    return {name: value.detach() for name, value in sums.items()}, torch.autograd.grad(3 * sums[TOTAL], leaves)


def at_once(objective, hidden_PD, head_VD, labels, targets_P):
    """The same by plain autograd over all positions."""
    leaves = hidden_PD.clone().requires_grad_(), head_VD.clone().requires_grad_()
    sums = objective(leaves[0] @ leaves[1].T, labels, targets_P)
    return {name: value.detach() for name, value in sums.items()}, torch.autograd.grad(3 * sums[TOTAL], leaves)


@pytest.mark.parametrize("chunk", [1, 3, 10, 11, 100])
@pytest.mark.parametrize("kind", ["top_k", "dense", "sampled"])
def test_chunks_change_neither_value_nor_gradient(hidden_PD, head_VD, targets_P, chunk, kind, request):
    """Every loss that the labels carry, all in one sum."""
    losses = [loss for loss in EVERY_LOSS if refusal(loss.kind, kind) is None]
    arguments = (Objective(losses), hidden_PD, head_VD, request.getfixturevalue(kind), targets_P)
    torch.testing.assert_close(in_chunks(*arguments, chunk=chunk), at_once(*arguments), rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunk=st.integers(1, 12), cut=st.integers(0, 11), seed=st.integers(0, 10**6), padding=st.integers(0, 3))
def test_chunks_micro_batches_order_and_padding_mean_nothing(
    hidden_PD, head_VD, top_k, targets_P, chunk, cut, seed, padding
):
    """Positions shuffled, cut in two, and taken out of rows that are padded on either side: the same sum."""
    objective = Objective([SkewKl(weight=0.5), ForwardKl(), CrossEntropy(weight=0.3)])
    whole, (_, whole_head_VD) = at_once(objective, hidden_PD, head_VD, top_k, targets_P)
    order_P = torch.randperm(11, generator=torch.Generator().manual_seed(seed))
    total, head_gradient_VD = 0.0, torch.zeros_like(head_VD)
    for some_P in (order_P[:cut], order_P[cut:]):
        row_TD = torch.nn.functional.pad(hidden_PD[some_P], (0, 0, padding, 3 - padding), value=7.0)
        scored_T = torch.zeros(len(row_TD), dtype=torch.bool)
        scored_T[padding : padding + len(some_P)] = True
        part, gradients = in_chunks(
            objective, row_TD[scored_T], head_VD, top_k.at(some_P), targets_P[some_P], chunk=chunk
        )
        total += part[TOTAL]
        head_gradient_VD += gradients[1]
    torch.testing.assert_close(total, whole[TOTAL], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(head_gradient_VD, whole_head_VD, rtol=1e-4, atol=1e-5)


def test_the_head_runs_once_per_position_and_never_on_more_than_a_chunk(hidden_PD, head_VD, top_k, targets_P):
    sizes = []

    def head(chunk_PD):
        sizes.append(len(chunk_PD))
        return chunk_PD @ head_VD.T

    leaf_PD = hidden_PD.clone().requires_grad_()
    sums = objective_from_hidden(Objective([ForwardKl()]), leaf_PD, head, top_k, targets_P, head_parameters=[], chunk=4)
    sums[TOTAL].backward()
    assert sizes == [4, 4, 3]
    assert leaf_PD.grad.abs().sum() > 0


def test_without_gradients_none_are_made(hidden_PD, head_VD, top_k, targets_P):
    """As in validation, where a gradient would cost as much again."""
    arguments = (Objective([ForwardKl()]), hidden_PD.requires_grad_(), lambda x: x @ head_VD.T, top_k, targets_P)
    with torch.inference_mode():
        sums = objective_from_hidden(*arguments, head_parameters=[], chunk=4)
    assert not sums[TOTAL].requires_grad
    torch.testing.assert_close(sums[TOTAL], forward_kl(hidden_PD @ head_VD.T, top_k).sum().detach())


@pytest.mark.parametrize("vocabulary", [64, 4096, 32_768, 50_257, 151_936, 10**6])
def test_a_chunk_is_a_multiple_of_64_positions_of_at_most_64_mb(vocabulary):
    """But never fewer than 64, however large the vocabulary: kernels are compiled per shape."""
    chunk = positions_at_once(vocabulary)
    assert chunk % 64 == 0
    assert chunk == 64 or 4 * chunk * vocabulary <= 1 << 26


def test_a_micro_batch_of_nothing_adds_nothing_and_has_a_gradient_path(hidden_PD, head_VD, top_k, targets_P):
    leaf_PD = hidden_PD[:0].clone().requires_grad_()
    sums = objective_from_hidden(
        Objective([ForwardKl(), CrossEntropy()]),
        leaf_PD,
        lambda x: x @ head_VD.T,
        top_k.at(slice(0, 0)),
        targets_P[:0],
        head_parameters=[head_VD],
        chunk=4,
    )
    assert sums[TOTAL] == 0.0
    sums[TOTAL].backward()


@pytest.mark.parametrize(
    "loss", [loss for loss in EVERY_LOSS if hasattr(loss, "temperature")], ids=lambda loss: loss.kind
)
def test_temperature_softens_both_sides_and_keeps_the_gradients_scale(
    cases, hidden_PD, head_VD, dense, targets_P, loss
):
    """The entry is the divergence of the softened distributions; the total carries τ²."""
    logits_PV = hidden_PD @ head_VD.T
    changed = {"temperature": 2.5, "weight": 1.0, "alpha": 0.1, "beta": 0.3}
    softer = loss.model_copy(update={key: changed[key] for key in changed if hasattr(loss, key)})
    sums = Objective([softer])(logits_PV, dense, targets_P)
    teacher = cases.dense(dense.logprobs_PV.double() / 2.5)
    expected = cases.reference(loss.kind, logits_PV.double() / 2.5, teacher).sum().float()
    torch.testing.assert_close(sums[loss.kind], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sums[TOTAL], expected * 2.5**2, rtol=1e-5, atol=1e-5)


def test_what_check_losses_should_have_refused_is_a_bug(hidden_PD, head_VD, top_k, targets_P):
    logits_PV = hidden_PD @ head_VD.T
    with pytest.raises(BugError, match="none were given"):
        Objective([ForwardKl()])(logits_PV, None, targets_P)
    with pytest.raises(BugError, match="dense"):
        Objective([ForwardKl(temperature=2.0)])(logits_PV, top_k, targets_P)
