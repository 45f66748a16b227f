"""Divergences against a slow, obvious float64 reference: value, gradient, properties and limits."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from potstill.core.errors import RecipeError
from potstill.distill.divergences import cross_entropy, forward_kl, jensen_shannon, reverse_kl
from potstill.labels.kinds import DenseLabels, SampledLabels, TopKLabels

SHAPES = [(1, 2, 1), (3, 7, 3), (4, 50, 49), (4, 50, 50), (2, 300, 32)]

per_name = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def assert_equals_the_reference(cases, name, logits_PV, labels):
    nats_P, gradient_PV = cases.value_and_gradient(cases.DIVERGENCES[name], logits_PV, labels)
    expected_P, expected_PV = cases.value_and_gradient(lambda x: cases.reference(name, x, labels), logits_PV)
    torch.testing.assert_close(nats_P.double(), expected_P, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient_PV, expected_PV, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("positions", "vocabulary", "kept"), SHAPES)
@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0])
def test_top_k_equals_the_reference_in_value_and_gradient(cases, name, positions, vocabulary, kept, spread):
    labels = cases.top_k(cases.logits(1, positions, vocabulary, spread), kept)
    assert_equals_the_reference(cases, name, cases.logits(2, positions, vocabulary, spread), labels)


@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0])
def test_dense_equals_the_reference_in_value_and_gradient(cases, name, spread):
    labels = cases.dense(cases.logits(1, 3, 200, spread))
    assert_equals_the_reference(cases, name, cases.logits(2, 3, 200, spread), labels)


@pytest.mark.parametrize("size", [1e4, -1e4])
@pytest.mark.parametrize("kind", ["top_k", "dense"])
def test_extreme_logits_keep_value_and_gradient(cases, name, size, kind):
    """One logit of the student at +-1e4: the teacher's likeliest token, or its least likely one."""
    teacher_PV = cases.logits(1, 4, 12, 1.0)
    labels = cases.top_k(teacher_PV, 3) if kind == "top_k" else cases.dense(teacher_PV)
    logits_PV = cases.logits(2, 4, 12, 1.0)
    order_PV = teacher_PV.argsort(descending=True)
    logits_PV[:2] = logits_PV[:2].scatter(-1, order_PV[:2, :1], size)
    logits_PV[2:] = logits_PV[2:].scatter(-1, order_PV[2:, -1:], size)
    assert_equals_the_reference(cases, name, logits_PV, labels)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_an_extreme_teacher_keeps_value_and_gradient(cases, name, size):
    """Log-probabilities of -1e4 have no mass in float32, and still cost a student that says those tokens."""
    teacher_PV = cases.logits(1, 4, 12, 1.0)
    teacher_PV[:, 3] = size
    assert_equals_the_reference(cases, name, cases.logits(2, 4, 12, 1.0), cases.dense(teacher_PV))


def test_what_neither_side_ever_says_costs_nothing(cases, name):
    """0 log 0 = 0 with a finite gradient, in the tail and among the kept: both are impossible, in value -inf."""
    logits_PV = torch.tensor([[0.0, 1.0, 2.0, -torch.inf, -torch.inf]])
    without = cases.dense(torch.tensor([[1.0, 0.0, -1.0]]))
    gone_P2 = torch.full((1, 2), -torch.inf)
    same = [
        DenseLabels(torch.cat([without.logprobs_PV, gone_P2], dim=-1)),
        TopKLabels(torch.tensor([[0, 1, 2]]), without.logprobs_PV, torch.zeros(1)),
        TopKLabels(torch.arange(5).unsqueeze(0), torch.cat([without.logprobs_PV, gone_P2], dim=-1), torch.zeros(1)),
    ]
    function = cases.DIVERGENCES[name]
    expected_P, expected_PV = cases.value_and_gradient(function, logits_PV[:, :3], without)
    for labels in same:
        nats_P, gradient_PV = cases.value_and_gradient(function, logits_PV, labels)
        torch.testing.assert_close(nats_P, expected_P)
        torch.testing.assert_close(gradient_PV[:, :3], expected_PV)
        assert (gradient_PV[:, 3:] == 0).all()


def test_what_only_the_teacher_rules_out_has_its_limit_and_a_finite_gradient(cases, name):
    """Reverse KL is infinite, all others finite; descent takes mass away from what is ruled out, or leaves it."""
    logits_PV = torch.tensor([[0.0, 1.0, 0.5, -0.5]])
    for labels in (
        DenseLabels(torch.tensor([[0.5, 0.5, 0.0, 0.0]]).log()),
        TopKLabels(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]]).log(), torch.zeros(1)),
        TopKLabels(torch.tensor([[1, 0, 2]]), torch.tensor([[0.5, 0.5, 0.0]]).log(), torch.zeros(1)),
    ):
        nats_P, gradient_PV = cases.value_and_gradient(cases.DIVERGENCES[name], logits_PV, labels)
        assert nats_P.isfinite().item() is (name != "reverse_kl")
        assert gradient_PV.isfinite().all()
        assert (gradient_PV[0, 2:] > 0).all()
        if name != "reverse_kl":
            torch.testing.assert_close(nats_P.double(), cases.reference(name, logits_PV, labels))


def test_what_only_the_student_rules_out_has_its_limit_and_a_finite_gradient(cases, name):
    """Forward KL is infinite, all others finite."""
    logits_PV = torch.tensor([[0.0, 1.0, -torch.inf, -torch.inf]])
    for labels in (
        TopKLabels(torch.tensor([[2]]), torch.tensor([[0.5]]).log(), torch.tensor([0.5])),
        TopKLabels(torch.tensor([[0, 1]]), torch.tensor([[0.25, 0.25]]).log(), torch.tensor([0.5])),
        DenseLabels(torch.full((1, 4), 0.25).log()),
    ):
        nats_P, gradient_PV = cases.value_and_gradient(cases.DIVERGENCES[name], logits_PV, labels)
        assert gradient_PV.isfinite().all()
        assert nats_P.isfinite().item() is (name != "forward_kl")
        if name != "forward_kl":
            torch.testing.assert_close(nats_P.double(), cases.reference(name, logits_PV, labels))


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl"])
def test_a_tiny_tail_keeps_its_digits(cases, name):
    """A student tail of e^-30 vanishes beside 1 in float32, and still is told from one of e^-20."""
    labels = TopKLabels(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.4]]).log(), torch.tensor([0.1]))
    for tail_logit in (-30.0, -20.0):
        assert_equals_the_reference(cases, name, torch.tensor([[0.0, 0.0, tail_logit, tail_logit]]), labels)


SIZES = st.tuples(st.integers(1, 4), st.integers(2, 40)).flatmap(
    lambda size: st.tuples(st.just(size[0]), st.just(size[1]), st.integers(1, size[1]))
)


@per_name
@given(size=SIZES, seed=st.integers(0, 10**6), spread=st.floats(0.0, 8.0))
def test_never_negative_never_above_the_bound_and_bucketing_only_loses(cases, name, size, seed, spread):
    """0 <= top-k <= dense <= the divergence's own bound, and top-k = dense where all tokens are kept."""
    positions, vocabulary, kept = size
    teacher_PV = cases.logits(seed, positions, vocabulary, spread)
    logits_PV = cases.logits(seed + 1, positions, vocabulary, spread)
    function = cases.DIVERGENCES[name]
    bucketed_P = function(logits_PV, cases.top_k(teacher_PV, kept))
    full_P = function(logits_PV, cases.dense(teacher_PV))
    assert (bucketed_P >= -2e-6).all()
    assert (full_P >= -2e-6).all()
    assert (full_P <= cases.BOUNDS[name] + 2e-6).all()
    assert (bucketed_P <= full_P * (1 + 1e-5) + 2e-6).all()
    if kept == vocabulary:
        torch.testing.assert_close(bucketed_P, full_P, rtol=1e-5, atol=2e-6)


@per_name
@given(size=SIZES, seed=st.integers(0, 10**6), shift=st.floats(-50.0, 50.0))
def test_zero_with_a_zero_gradient_for_the_teacher_itself(cases, name, size, seed, shift):
    """Equal distributions, whatever constant is added to the logits; total variation has a kink there."""
    positions, vocabulary, kept = size
    teacher_PV = cases.logits(seed, positions, vocabulary, 3.0)
    for labels in (cases.top_k(teacher_PV, kept), cases.dense(teacher_PV)):
        nats_P, gradient_PV = cases.value_and_gradient(cases.DIVERGENCES[name], teacher_PV + shift, labels)
        assert (nats_P.abs() < 2e-5).all()
        if name != "total_variation":
            assert (gradient_PV.abs() < 2e-5).all()


@per_name
@given(seed=st.integers(0, 10**6), token=st.integers(0, 9), step=st.floats(0.05, 5.0))
def test_more_than_zero_for_any_other_student(cases, name, seed, token, step):
    """Moving one logit moves mass between outcomes that are told apart, so the divergence is positive."""
    teacher_PV = cases.logits(seed, 1, 10, 1.0)
    student_PV = teacher_PV.clone()
    student_PV[0, token] += step
    for labels in (cases.dense(teacher_PV), cases.top_k(teacher_PV, 9)):
        assert (cases.DIVERGENCES[name](student_PV, labels) > 0).all()


@per_name
@given(size=SIZES, seed=st.integers(0, 10**6))
def test_the_numbering_of_tokens_means_nothing(cases, name, size, seed):
    """Teacher and student permuted alike: the same value, and the gradient permuted."""
    positions, vocabulary, kept = size
    teacher_PV, logits_PV = (cases.logits(seed + side, positions, vocabulary, 2.0) for side in (0, 1))
    order_V = torch.randperm(vocabulary, generator=torch.Generator().manual_seed(seed))
    for labels_of in (cases.dense, lambda x: cases.top_k(x, kept)):
        nats_P, gradient_PV = cases.value_and_gradient(cases.DIVERGENCES[name], logits_PV, labels_of(teacher_PV))
        permuted_P, permuted_PV = cases.value_and_gradient(
            cases.DIVERGENCES[name], logits_PV[:, order_V], labels_of(teacher_PV[:, order_V])
        )
        torch.testing.assert_close(permuted_P, nats_P, rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(permuted_PV, gradient_PV[:, order_V], rtol=1e-4, atol=2e-6)


def test_within_the_tail_the_student_is_free(cases, name):
    """What the bucket can't see costs nothing: the same tail mass, spread in another way."""
    teacher_PV = cases.logits(5, 3, 20, 2.0)
    labels = cases.top_k(teacher_PV, 4)
    tail_PV = torch.ones(3, 20, dtype=torch.bool).scatter(-1, labels.ids_PK, value=False)
    student_PV = teacher_PV.clone()
    student_PV[tail_PV] = student_PV[tail_PV].view(3, 16).flip(-1).flatten()
    torch.testing.assert_close(cases.DIVERGENCES[name](student_PV, labels), torch.zeros(3), atol=2e-6, rtol=0)


@pytest.mark.parametrize("split", [1, 2, 5])
def test_a_position_knows_nothing_of_its_neighbours(cases, name, split):
    """Any split into micro-batches gives the same bits."""
    labels, logits_PV = cases.top_k(cases.logits(1, 10, 64, 2.0), 8), cases.logits(2, 10, 64, 2.0)
    function = cases.DIVERGENCES[name]
    parts = [
        function(logits_PV[start : start + split], labels.at(slice(start, start + split)))
        for start in range(0, 10, split)
    ]
    assert torch.equal(torch.cat(parts), function(logits_PV, labels))


@pytest.mark.parametrize(
    ("dtype", "computed"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_computes_in_float32_or_wider_from_any_dtype(cases, name, dtype, computed):
    """The value is that of the rounded logits; the gradient comes back in the logits' own dtype."""
    logits_PV = cases.logits(2, 3, 30, 1.0).to(dtype)
    teacher_PV = cases.logits(1, 3, 30, 1.0)
    for labels in (cases.top_k(teacher_PV, 4), cases.dense(teacher_PV)):
        nats_P, gradient_PV = cases.value_and_gradient(cases.DIVERGENCES[name], logits_PV, labels)
        assert nats_P.dtype == computed
        assert gradient_PV.dtype == dtype
        exact_P = cases.DIVERGENCES[name](logits_PV.to(computed), labels)
        torch.testing.assert_close(nats_P, exact_P)


def test_nan_logits_are_not_hidden(cases, name):
    """A broken student shows in the loss at its own position only."""
    logits_PV, teacher_PV = cases.logits(1, 2, 6, 1.0), cases.logits(2, 2, 6, 1.0)
    logits_PV[0, 4] = torch.nan
    for labels in (cases.top_k(teacher_PV, 2), cases.top_k(teacher_PV, 6), cases.dense(teacher_PV)):
        assert cases.DIVERGENCES[name](logits_PV, labels).isnan().tolist() == [True, False]


def test_nothing_scored_gives_nothing_with_a_gradient_path(cases, name):
    for labels in (
        TopKLabels(torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 2), torch.zeros(0)),
        DenseLabels(torch.zeros(0, 5)),
    ):
        logits_PV = torch.zeros(0, 5, requires_grad=True)
        cases.DIVERGENCES[name](logits_PV, labels).sum().backward()
        assert logits_PV.grad.shape == (0, 5)


@pytest.mark.parametrize(("beta", "scale"), [(1e-4, 1e-4), (1 - 1e-4, 1e-4)])
def test_jensen_shannon_tends_to_forward_and_reverse_kl(cases, beta, scale):
    """Divided by beta as beta falls to 0, and by 1 - beta as it rises to 1: which side is which."""
    labels, logits_PV = cases.dense(cases.logits(1, 3, 9, 1.0)), cases.logits(2, 3, 9, 1.0).double()
    limit_P = forward_kl(logits_PV, labels) if beta < 0.5 else reverse_kl(logits_PV, labels)
    torch.testing.assert_close(jensen_shannon(logits_PV, labels, beta=beta) / scale, limit_P, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["reverse_kl", "jensen_shannon", "skew_kl", "skew_reverse_kl", "total_variation"])
def test_draws_are_refused_with_the_reason(cases, name):
    labels = SampledLabels(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1), torch.zeros(1))
    with pytest.raises(RecipeError, match=r"never drawn|isn't linear"):
        cases.DIVERGENCES[name](torch.zeros(1, 4), labels)


def test_cross_entropy_is_the_forward_kl_of_a_certain_teacher(cases):
    """A label with all its mass on one token has no entropy, so all kinds say the same."""
    logits_PV, targets_P = cases.logits(3, 5, 40, 2.0), torch.tensor([1, 2, 3, 4, 39])
    expected_P, expected_PV = cases.value_and_gradient(cross_entropy, logits_PV, targets_P)
    for certain in (
        TopKLabels(targets_P.unsqueeze(-1), torch.zeros(5, 1), torch.zeros(5)),
        SampledLabels(targets_P.unsqueeze(-1), torch.ones(5, 1), torch.zeros(5)),
        DenseLabels(torch.nn.functional.one_hot(targets_P, 40).float().log()),
    ):
        nats_P, gradient_PV = cases.value_and_gradient(forward_kl, logits_PV, certain)
        torch.testing.assert_close(nats_P, expected_P)
        torch.testing.assert_close(gradient_PV, expected_PV)
