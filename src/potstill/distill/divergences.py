"""How far a student's next-token distribution is from what it should be, per scored position, in nats.

Shapes: P scored positions, V vocabulary, K kept tokens of a label.

Everything is computed in float32 whatever the dtype of the logits. The gradients are written out by hand, since
autograd would keep three P x V buffers where one is enough: the gradient itself, made in the forward pass.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from potstill.core.errors import RecipeError
from potstill.labels.kinds import DenseLabels, SampledLabels, SoftLabels

__all__ = ["cross_entropy", "forward_kl"]

_NEVER = -torch.inf


def forward_kl(student_logits_PV: Tensor, labels: SoftLabels) -> Tensor:
    """KL(teacher || student) at each position, the entropy term included.

    Dense labels give it over the whole vocabulary. Top-k labels give it over the K kept tokens and one bucket for all
    the others: a true KL between distributions over K + 1 outcomes, zero only when those agree, never more than the
    full one, and equal to it when K = V. Where the student gives no mass to what the teacher does, it is infinite.

    Shapes: student_logits_PV any float dtype; label ids distinct within a position.
    Returns: float32 nats_P.
    Raises: RecipeError: the labels are draws, which hold no log-probabilities.
    Cost: one P x V float32 buffer for top-k labels, three for dense ones.
    Source: the bound is the log-sum inequality (Cover & Thomas 2006, theorem 2.7.1).
    """
    if isinstance(labels, SampledLabels):
        raise RecipeError(
            "forward_kl can't be computed from sampled labels: draws don't tell the teacher's entropy",
            next_step="use labels: {kind: top_k} or {kind: dense}",
        )
    nats_P: Tensor
    if isinstance(labels, DenseLabels):
        nats_P = _DenseForwardKl.apply(student_logits_PV, labels.logprobs_PV)  # type: ignore[no-untyped-call]
    else:
        nats_P = _TopKForwardKl.apply(  # type: ignore[no-untyped-call]
            student_logits_PV, labels.ids_PK, labels.logprobs_PK, labels.tail_mass_P
        )
    return nats_P


def cross_entropy(student_logits_PV: Tensor, targets_P: Tensor) -> Tensor:
    """Minus the log-probability that the student gives to the target token at each position.

    Shapes: student_logits_PV any float dtype; targets_P int64.
    Returns: float32 nats_P.
    """
    return torch.nn.functional.cross_entropy(student_logits_PV.float(), targets_P, reduction="none")


class _TopKForwardKl(torch.autograd.Function):
    """Kept tokens and a tail bucket.

    With q the student's softmax, p the kept teacher probabilities, t the tail mass and s = sum(p) + t, the gradient
    is s q_j - p_j at a kept token, and q_j (s - t / q_tail) outside. Outside, the student's exponentials are summed
    on their own, never as 1 - (kept mass), so a tiny tail keeps its digits.
    """

    @staticmethod
    def forward(ctx: Any, logits_PV: Tensor, ids_PK: Tensor, logprobs_PK: Tensor, tail_P: Tensor) -> Tensor:  # noqa: ANN401 - torch's context
        work_PV = logits_PV.to(torch.float32, copy=True)
        kept_PK = work_PV.gather(-1, ids_PK)
        work_PV.scatter_(-1, ids_PK, _NEVER)
        shift_P = work_PV.amax(-1).nan_to_num(neginf=0.0, nan=torch.nan)
        work_PV.sub_(shift_P.unsqueeze(-1)).exp_()
        outside_P = work_PV.sum(-1)
        log_outside_P = outside_P.log() + shift_P
        log_total_P = torch.logaddexp(log_outside_P, kept_PK.logsumexp(-1))

        student_PK = kept_PK - log_total_P.unsqueeze(-1)
        student_tail_P = log_outside_P - log_total_P
        teacher_PK = logprobs_PK.exp()
        nats_P = _relative(teacher_PK, logprobs_PK, student_PK).sum(-1) + _relative(
            tail_P, tail_P.log(), student_tail_P
        )

        if ctx.needs_input_grad[0]:
            mass_P = teacher_PK.sum(-1) + tail_P
            excess_P = mass_P * student_tail_P.exp() - tail_P
            work_PV.mul_(torch.where(outside_P > 0, excess_P / outside_P, 0.0).unsqueeze(-1))
            work_PV.scatter_(-1, ids_PK, mass_P.unsqueeze(-1) * student_PK.exp() - teacher_PK)
            ctx.save_for_backward(work_PV)
            ctx.logits_dtype = logits_PV.dtype
        return nats_P

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads_P: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's context
        (grad_PV,) = ctx.saved_tensors
        return (grads_P[0].unsqueeze(-1) * grad_PV).to(ctx.logits_dtype), None, None, None


class _DenseForwardKl(torch.autograd.Function):
    """The whole vocabulary: the gradient is s q_j - p_j with s = sum(p)."""

    @staticmethod
    def forward(ctx: Any, logits_PV: Tensor, logprobs_PV: Tensor) -> Tensor:  # noqa: ANN401 - torch's context
        student_PV = logits_PV.log_softmax(-1, dtype=torch.float32)
        teacher_PV = logprobs_PV.exp()
        nats_P = _relative(teacher_PV, logprobs_PV, student_PV).sum(-1)
        if ctx.needs_input_grad[0]:
            student_PV.exp_().mul_(teacher_PV.sum(-1, keepdim=True)).sub_(teacher_PV)
            ctx.save_for_backward(student_PV)
            ctx.logits_dtype = logits_PV.dtype
        return nats_P

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads_P: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's context
        (grad_PV,) = ctx.saved_tensors
        return (grads_P[0].unsqueeze(-1) * grad_PV).to(ctx.logits_dtype), None


def _relative(mass: Tensor, log_mass: Tensor, student_log_mass: Tensor) -> Tensor:
    """The term mass * (log_mass - student_log_mass), and 0 where the mass is 0."""
    return torch.where(mass > 0, mass * (log_mass - student_log_mass), 0.0)
