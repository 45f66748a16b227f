"""The student's log-masses over a label's outcomes: values, hand-written gradients, and what they cost."""

import pytest
import torch

from potstill.distill.outcomes import log_masses, logprobs_at


def numeric_jacobian(function, logits_PV, step=1e-5):
    """Central differences of a function [1, V] -> [1, O] in float64."""
    columns = []
    for token in range(logits_PV.shape[1]):
        nudge_PV = torch.zeros_like(logits_PV)
        nudge_PV[0, token] = step
        columns.append((function(logits_PV + nudge_PV) - function(logits_PV - nudge_PV))[0] / (2 * step))
    return torch.stack(columns, dim=-1)


def written_jacobian(function, logits_PV):
    rows = []
    for outcome in range(function(logits_PV).shape[1]):
        leaf_PV = logits_PV.clone().requires_grad_()
        rows.append(torch.autograd.grad(function(leaf_PV)[0, outcome], leaf_PV)[0][0])
    return torch.stack(rows)


@pytest.mark.parametrize("kept", [1, 3, 6, 7])
def test_every_outcomes_gradient_is_its_derivative(cases, kept):
    labels = cases.top_k(cases.logits(1, 1, 7, 2.0), kept)
    logits_PV = cases.logits(2, 1, 7, 2.0).double()

    def outcomes(logits_PV):
        return log_masses(logits_PV, labels)[1][:, : kept + (kept < 7)]

    torch.testing.assert_close(written_jacobian(outcomes, logits_PV), numeric_jacobian(outcomes, logits_PV))


def test_every_tokens_gradient_is_its_derivative_and_a_token_may_come_twice():
    ids_PK = torch.tensor([[3, 0, 0, 5]])
    logits_PV = torch.tensor([[0.3, -2.0, 1.0, 0.0, 4.0, -1.0]], dtype=torch.float64)

    def picked(logits_PV):
        return logprobs_at(logits_PV, ids_PK)

    torch.testing.assert_close(picked(logits_PV), logits_PV.log_softmax(-1)[:, ids_PK[0]])
    torch.testing.assert_close(written_jacobian(picked, logits_PV), numeric_jacobian(picked, logits_PV))


@pytest.mark.parametrize("kept", [1, 5, 12])
def test_the_masses_of_both_sides_sum_to_one(cases, kept):
    labels = cases.top_k(cases.logits(3, 4, 12, 3.0), kept)
    for log_mass_PO in log_masses(cases.logits(4, 4, 12, 3.0), labels):
        torch.testing.assert_close(log_mass_PO.exp().sum(-1), torch.ones(4))


def test_a_second_backward_is_an_error_and_never_a_wrong_gradient(cases):
    """The buffer of exponentials has become the first gradient."""
    labels = cases.top_k(cases.logits(1, 2, 9, 1.0), 3)
    leaf_PV = cases.logits(2, 2, 9, 1.0).requires_grad_()
    for loss in (log_masses(leaf_PV, labels)[1].sum(), logprobs_at(leaf_PV, labels.ids_PK).sum()):
        loss.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_the_logits_stay_as_they_were(cases):
    """The buffer worked in is a copy, for float32 logits too."""
    logits_PV = cases.logits(1, 2, 9, 1.0)
    before_PV = logits_PV.clone()
    labels = cases.top_k(cases.logits(2, 2, 9, 1.0), 2)
    log_masses(logits_PV, labels)
    logprobs_at(logits_PV, labels.ids_PK)
    assert torch.equal(logits_PV, before_PV)


def test_one_buffer_of_the_vocabularys_width_lives_from_forward_to_backward(cases):
    """What autograd keeps for the backward pass: once P x V; all else has K + 1 columns at most."""
    labels = cases.top_k(cases.logits(1, 4, 300, 1.0), 3)
    leaf_PV = cases.logits(2, 4, 300, 1.0).requires_grad_()
    for function in (lambda: log_masses(leaf_PV, labels)[1], lambda: logprobs_at(leaf_PV, labels.ids_PK)):
        saved = function().grad_fn.saved_tensors
        assert [tensor.numel() for tensor in saved if tensor.numel() > 4 * 4] == [4 * 300]
