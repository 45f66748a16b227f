"""Divergences against a slow, obvious float64 reference: value, gradient, properties and limits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potstill.core.errors import RecipeError
from potstill.distill.divergences import cross_entropy, forward_kl
from potstill.labels.kinds import DenseLabels, SampledLabels, TopKLabels

SHAPES = [(1, 2, 1), (3, 7, 3), (4, 50, 49), (4, 50, 50), (2, 1000, 32)]


def reference_top_k(logits_PV: Tensor, labels: TopKLabels) -> Tensor:
    """Position by position, token by token, in float64."""
    totals = []
    for position in range(len(labels)):
        student_V = logits_PV[position].double().log_softmax(-1)
        ids = labels.ids_PK[position].tolist()
        total = student_V.sum() * 0.0
        for token, logprob in zip(ids, labels.logprobs_PK[position].double(), strict=True):
            if logprob > -torch.inf:
                total = total + logprob.exp() * (logprob - student_V[token])
        tail = labels.tail_mass_P[position].double()
        if tail > 0:
            others = [token for token in range(len(student_V)) if token not in ids]
            total = total + tail * (tail.log() - student_V[others].logsumexp(-1))
        totals.append(total)
    return torch.stack(totals)


def reference_dense(logits_PV: Tensor, labels: DenseLabels) -> Tensor:
    student_PV = logits_PV.double().log_softmax(-1)
    teacher_PV = labels.logprobs_PV.double()
    return torch.nn.functional.kl_div(student_PV, teacher_PV, reduction="none", log_target=True).sum(-1)


def top_k_of(teacher_PV: Tensor, num_kept: int) -> TopKLabels:
    logprobs_PV = teacher_PV.double().log_softmax(-1)
    logprobs_PK, ids_PK = logprobs_PV.topk(num_kept)
    tail_P = logprobs_PV.exp().scatter(-1, ids_PK, 0.0).sum(-1)
    return TopKLabels(ids_PK, logprobs_PK.float(), tail_P.float())


def random_logits(seed: int, positions: int, vocabulary: int, spread: float) -> Tensor:
    return torch.randn(positions, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread


def value_and_gradient(function, logits_PV: Tensor, *arguments) -> tuple[Tensor, Tensor]:
    leaf_PV = logits_PV.clone().requires_grad_()
    nats_P = function(leaf_PV, *arguments)
    weights_P = torch.linspace(0.5, 2.0, len(nats_P), dtype=nats_P.dtype)
    (gradient_PV,) = torch.autograd.grad((nats_P * weights_P).sum(), leaf_PV)
    return nats_P.detach(), gradient_PV


@pytest.mark.parametrize(("positions", "vocabulary", "kept"), SHAPES)
@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0])
def test_top_k_equals_the_reference_in_value_and_gradient(positions, vocabulary, kept, spread):
    labels = top_k_of(random_logits(1, positions, vocabulary, spread), kept)
    logits_PV = random_logits(2, positions, vocabulary, spread)
    nats_P, gradient_PV = value_and_gradient(forward_kl, logits_PV, labels)
    expected_P, expected_PV = value_and_gradient(reference_top_k, logits_PV, labels)
    torch.testing.assert_close(nats_P.double(), expected_P, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient_PV, expected_PV, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0])
def test_dense_equals_the_reference_in_value_and_gradient(spread):
    labels = DenseLabels(random_logits(1, 4, 300, spread).log_softmax(-1))
    logits_PV = random_logits(2, 4, 300, spread)
    nats_P, gradient_PV = value_and_gradient(forward_kl, logits_PV, labels)
    expected_P, expected_PV = value_and_gradient(reference_dense, logits_PV, labels)
    torch.testing.assert_close(nats_P.double(), expected_P, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient_PV, expected_PV, rtol=1e-5, atol=1e-6)


def test_cross_entropy_equals_the_reference_in_value_and_gradient():
    logits_PV = random_logits(2, 6, 300, 3.0)
    targets_P = torch.tensor([0, 299, 5, 5, 17, 80])
    nats_P, gradient_PV = value_and_gradient(cross_entropy, logits_PV, targets_P)
    by_hand_P = -logits_PV.double().log_softmax(-1)[torch.arange(6), targets_P]
    _, expected_PV = value_and_gradient(lambda x, y: -x.double().log_softmax(-1)[range(6), y], logits_PV, targets_P)
    torch.testing.assert_close(nats_P.double(), by_hand_P, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient_PV, expected_PV, rtol=1e-5, atol=1e-6)


def test_cross_entropy_is_the_forward_kl_of_a_certain_teacher():
    """A label with all its mass on one token has no entropy, so both say the same."""
    logits_PV, targets_P = random_logits(3, 5, 40, 2.0), torch.tensor([1, 2, 3, 4, 39])
    certain = TopKLabels(targets_P.unsqueeze(-1), torch.zeros(5, 1), torch.zeros(5))
    torch.testing.assert_close(forward_kl(logits_PV, certain), cross_entropy(logits_PV, targets_P))


SIZES = st.tuples(st.integers(1, 4), st.integers(2, 40)).flatmap(
    lambda size: st.tuples(st.just(size[0]), st.just(size[1]), st.integers(1, size[1]))
)


@settings(max_examples=60, deadline=None)
@given(size=SIZES, seed=st.integers(0, 10**6), spread=st.floats(0.0, 8.0))
def test_never_negative_and_never_more_than_the_full_kl(size, seed, spread):
    """The bucket only loses: 0 <= top-k <= dense, and top-k = dense where all tokens are kept."""
    positions, vocabulary, kept = size
    teacher_PV = random_logits(seed, positions, vocabulary, spread)
    logits_PV = random_logits(seed + 1, positions, vocabulary, spread)
    bound_P = forward_kl(logits_PV, top_k_of(teacher_PV, kept))
    full_P = forward_kl(logits_PV, DenseLabels(teacher_PV.log_softmax(-1)))
    assert (bound_P >= -2e-6).all()
    assert (full_P >= -2e-6).all()
    assert (bound_P <= full_P * (1 + 1e-5) + 2e-6).all()
    if kept == vocabulary:
        torch.testing.assert_close(bound_P, full_P, rtol=1e-5, atol=2e-6)


@settings(max_examples=40, deadline=None)
@given(size=SIZES, seed=st.integers(0, 10**6), shift=st.floats(-50.0, 50.0))
def test_zero_with_a_zero_gradient_for_the_teacher_itself(size, seed, shift):
    """Equal distributions, whatever constant is added to the logits."""
    positions, vocabulary, kept = size
    teacher_PV = random_logits(seed, positions, vocabulary, 3.0)
    for labels in (top_k_of(teacher_PV, kept), DenseLabels(teacher_PV.log_softmax(-1))):
        nats_P, gradient_PV = value_and_gradient(forward_kl, teacher_PV + shift, labels)
        assert (nats_P.abs() < 2e-5).all()
        assert (gradient_PV.abs() < 2e-5).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), token=st.integers(0, 9), step=st.floats(0.05, 5.0))
def test_more_than_zero_for_any_other_student(seed, token, step):
    """Moving one logit moves mass between outcomes that are told apart, so the divergence is positive."""
    teacher_PV = random_logits(seed, 1, 10, 1.0)
    student_PV = teacher_PV.clone()
    student_PV[0, token] += step
    assert (forward_kl(student_PV, DenseLabels(teacher_PV.log_softmax(-1))) > 0).all()
    assert (forward_kl(student_PV, top_k_of(teacher_PV, 9)) > 0).all()


def test_within_the_tail_the_student_is_free():
    """What the bucket can't see costs nothing: the same tail mass, spread in another way."""
    teacher_PV = random_logits(5, 3, 20, 2.0)
    labels = top_k_of(teacher_PV, 4)
    tail_PV = torch.ones(3, 20, dtype=torch.bool).scatter(-1, labels.ids_PK, value=False)
    student_PV = teacher_PV.clone()
    student_PV[tail_PV] = student_PV[tail_PV].view(3, 16).flip(-1).flatten()
    torch.testing.assert_close(forward_kl(student_PV, labels), torch.zeros(3), atol=2e-6, rtol=0)


@pytest.mark.parametrize("split", [1, 2, 5])
def test_a_position_knows_nothing_of_its_neighbours(split):
    """Any split into micro-batches gives the same bits."""
    labels, logits_PV = top_k_of(random_logits(1, 10, 64, 2.0), 8), random_logits(2, 10, 64, 2.0)
    parts = [
        forward_kl(logits_PV[start : start + split], labels.at(slice(start, start + split)))
        for start in range(0, 10, split)
    ]
    assert torch.equal(torch.cat(parts), forward_kl(logits_PV, labels))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_computes_in_float32_from_any_dtype(dtype):
    """The value is that of the rounded logits; the gradient comes back in the logits' own dtype."""
    labels = top_k_of(random_logits(1, 3, 30, 1.0), 4)
    logits_PV = random_logits(2, 3, 30, 1.0).to(dtype)
    nats_P, gradient_PV = value_and_gradient(forward_kl, logits_PV, labels)
    assert nats_P.dtype == torch.float32
    assert gradient_PV.dtype == dtype
    torch.testing.assert_close(nats_P, forward_kl(logits_PV.float(), labels))


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_logits_keep_the_value_and_a_finite_gradient(size):
    """One logit at +-1e4, kept or in the tail."""
    labels = top_k_of(random_logits(1, 4, 12, 1.0), 3)
    logits_PV = random_logits(2, 4, 12, 1.0)
    logits_PV[:2] = logits_PV[:2].scatter(-1, labels.ids_PK[:2, :1], size)
    logits_PV[2:] = logits_PV[2:].scatter(-1, top_k_of(random_logits(1, 4, 12, 1.0), 12).ids_PK[2:, -1:], size)
    nats_P, gradient_PV = value_and_gradient(forward_kl, logits_PV, labels)
    expected_P, expected_PV = value_and_gradient(reference_top_k, logits_PV, labels)
    torch.testing.assert_close(nats_P.double(), expected_P, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient_PV, expected_PV, rtol=1e-5, atol=1e-6)
    assert gradient_PV.isfinite().all()


def test_a_tiny_tail_keeps_its_digits():
    """A student tail of e^-30 vanishes beside 1 in float32, and still is told from one of e^-20."""
    labels = TopKLabels(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.4]]).log(), torch.tensor([0.1]))
    for tail_logit in (-30.0, -20.0):
        logits_PV = torch.tensor([[0.0, 0.0, tail_logit, tail_logit]])
        nats_P, gradient_PV = value_and_gradient(forward_kl, logits_PV, labels)
        expected_P, expected_PV = value_and_gradient(reference_top_k, logits_PV, labels)
        torch.testing.assert_close(nats_P.double(), expected_P, rtol=1e-6, atol=0)
        torch.testing.assert_close(gradient_PV, expected_PV, rtol=1e-5, atol=1e-7)


def test_no_tail_mass_and_impossible_kept_tokens_cost_nothing():
    """A tail of 0 and log-probabilities of -inf: 0 log 0 = 0, and the gradient is finite."""
    labels = TopKLabels(torch.tensor([[3, 1, 0]]), torch.tensor([[0.0, -torch.inf, -torch.inf]]), torch.zeros(1))
    logits_PV = random_logits(1, 1, 8, 2.0)
    nats_P, gradient_PV = value_and_gradient(forward_kl, logits_PV, labels)
    torch.testing.assert_close(nats_P, cross_entropy(logits_PV, torch.tensor([3])))
    torch.testing.assert_close(gradient_PV, value_and_gradient(cross_entropy, logits_PV, torch.tensor([3]))[1])
    dense = DenseLabels(torch.full((1, 8), -torch.inf).index_fill(-1, torch.tensor([3]), 0.0))
    torch.testing.assert_close(forward_kl(logits_PV, dense), nats_P)


def test_a_student_that_rules_out_what_the_teacher_says_is_infinitely_far():
    """With a finite gradient that pulls the token up."""
    logits_PV = torch.tensor([[0.0, 1.0, -torch.inf, -torch.inf]])
    for labels in (
        TopKLabels(torch.tensor([[2]]), torch.tensor([[0.5]]).log(), torch.tensor([0.5])),
        TopKLabels(torch.tensor([[0, 1]]), torch.tensor([[0.25, 0.25]]).log(), torch.tensor([0.5])),
        DenseLabels(torch.full((1, 4), 0.25).log()),
    ):
        nats_P, gradient_PV = value_and_gradient(forward_kl, logits_PV, labels)
        assert (nats_P == torch.inf).all()
        assert gradient_PV.isfinite().all()


def test_nan_logits_are_not_hidden():
    """A broken student shows in the loss at its own position only."""
    logits_PV = random_logits(1, 2, 6, 1.0)
    logits_PV[0, 4] = torch.nan
    for labels in (
        top_k_of(random_logits(2, 2, 6, 1.0), 2),
        top_k_of(random_logits(2, 2, 6, 1.0), 6),
        DenseLabels(random_logits(2, 2, 6, 1.0).log_softmax(-1)),
    ):
        assert forward_kl(logits_PV, labels).isnan().tolist() == [True, False]


def test_nothing_scored_gives_nothing_with_a_gradient_path():
    logits_PV = torch.zeros(0, 5, requires_grad=True)
    for labels in (
        TopKLabels(torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 2), torch.zeros(0)),
        DenseLabels(torch.zeros(0, 5)),
    ):
        forward_kl(logits_PV, labels).sum().backward()
        assert logits_PV.grad is not None
        assert logits_PV.grad.shape == (0, 5)


def test_the_students_logits_stay_as_they_were():
    """The buffer worked in is a copy, for float32 logits too."""
    logits_PV = random_logits(1, 2, 9, 1.0)
    before_PV = logits_PV.clone()
    forward_kl(logits_PV, top_k_of(random_logits(2, 2, 9, 1.0), 2))
    assert torch.equal(logits_PV, before_PV)


def test_draws_are_refused_with_the_reason():
    labels = SampledLabels(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1))
    with pytest.raises(RecipeError, match="entropy"):
        forward_kl(torch.zeros(1, 4), labels)
