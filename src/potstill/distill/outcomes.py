"""How much mass do teacher and student give to the outcomes that a label tells apart?

Shapes: P scored positions, V vocabulary, K kept tokens of a label, O outcomes: the V tokens for a dense label; the K
kept tokens and one bucket for all others for a top-k label.

Everything is computed in float32, or in the logits' own dtype if that is wider. Two gradients are written out by
hand, since autograd would keep three P x V buffers where one is enough: the exponentials, which the backward pass
turns into the gradient in place. So backward runs once; a second time is an error of PyTorch's own.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from potstill.labels.kinds import DenseLabels, TopKLabels

__all__ = ["log_masses", "logprobs_at"]


def log_masses(student_logits_PV: Tensor, labels: DenseLabels | TopKLabels) -> tuple[Tensor, Tensor]:
    """The log-masses of teacher and student over the outcomes of a label.

    The mass outside the kept tokens is summed on its own, never as 1 - (kept mass), so a tiny tail keeps its digits.

    Shapes: student_logits_PV any float dtype; label ids distinct within a position.
    Returns: log_teacher_PO and log_student_PO in nats; -inf for an impossible outcome; only the second has a gradient.
    Cost: one P x V buffer for top-k labels, for dense ones one that is returned.
    """
    if isinstance(labels, DenseLabels):
        return labels.logprobs_PV, student_logits_PV.log_softmax(-1, dtype=_wide(student_logits_PV))
    log_teacher_PO = torch.cat([labels.logprobs_PK, labels.tail_mass_P.log().unsqueeze(-1)], dim=-1)
    log_student_PO: Tensor = _LogMasses.apply(student_logits_PV, labels.ids_PK)  # type: ignore[no-untyped-call]
    return log_teacher_PO, log_student_PO


def logprobs_at(student_logits_PV: Tensor, ids_PK: Tensor) -> Tensor:
    """The student's log-probabilities of K tokens at each position; a token may stand there more than once.

    Returns: logprobs_PK in nats.
    Cost: one P x V buffer, whatever K is.
    """
    logprobs_PK: Tensor = _LogProbsAt.apply(student_logits_PV, ids_PK)  # type: ignore[no-untyped-call]
    return logprobs_PK


class _LogMasses(torch.autograd.Function):
    """Kept tokens and a tail bucket.

    With q the student's softmax, g the gradient of the K + 1 outcomes and G its sum, a logit's gradient is g_j - G q_j
    at a kept token, and outside q_j / q_tail (g_tail - G q_tail), where q_j / q_tail is a softmax over the outside
    alone, so that a tail which underflows divides nothing by zero.
    """

    @staticmethod
    def forward(ctx: Any, logits_PV: Tensor, ids_PK: Tensor) -> Tensor:  # noqa: ANN401 - torch's context
        work_PV = logits_PV.to(_wide(logits_PV), copy=True)
        kept_PK = work_PV.gather(-1, ids_PK)
        work_PV.scatter_(-1, ids_PK, -torch.inf)
        shift_P = work_PV.amax(-1).nan_to_num(neginf=0.0, nan=torch.nan)
        outside_P = work_PV.sub_(shift_P.unsqueeze(-1)).exp_().sum(-1)
        highest_P1 = kept_PK.amax(-1).maximum(torch.where(outside_P == 0, -torch.inf, shift_P)).unsqueeze(-1)
        tail_P1 = outside_P.log().unsqueeze(-1) + (shift_P.unsqueeze(-1) - highest_P1)
        log_masses_PO = torch.cat([kept_PK - highest_P1, tail_P1], dim=-1).log_softmax(-1)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(work_PV, ids_PK, log_masses_PO, outside_P)
            ctx.logits_dtype = logits_PV.dtype
        return log_masses_PO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads_PO: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's context
        work_PV, ids_PK, log_masses_PO, outside_P = ctx.saved_tensors
        logit_PO = grads_PO[0] - grads_PO[0].sum(-1, keepdim=True) * log_masses_PO.exp()
        tail_P1 = torch.where(outside_P == 0, 0.0, logit_PO[:, -1] / outside_P).unsqueeze(-1)
        work_PV.mul_(tail_P1).scatter_(-1, ids_PK, logit_PO[:, :-1])
        return work_PV.to(ctx.logits_dtype), None


class _LogProbsAt(torch.autograd.Function):
    """Some tokens without a bucket: the gradient is g_j - G q_j, with g_j = 0 at the tokens that aren't asked for."""

    @staticmethod
    def forward(ctx: Any, logits_PV: Tensor, ids_PK: Tensor) -> Tensor:  # noqa: ANN401 - torch's context
        work_PV = logits_PV.to(_wide(logits_PV), copy=True)
        picked_PK = work_PV.gather(-1, ids_PK)
        shift_P1 = work_PV.amax(-1, keepdim=True)
        total_P1 = work_PV.sub_(shift_P1).exp_().sum(-1, keepdim=True)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(work_PV, ids_PK, total_P1)
            ctx.logits_dtype = logits_PV.dtype
        return (picked_PK - shift_P1) - total_P1.log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads_PK: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's context
        work_PV, ids_PK, total_P1 = ctx.saved_tensors
        sum_P1 = grads_PK[0].sum(-1, keepdim=True)
        work_PV.mul_(-sum_P1 / total_P1).scatter_add_(-1, ids_PK, grads_PK[0])
        return work_PV.to(ctx.logits_dtype), None


def _wide(logits_PV: Tensor) -> torch.dtype:
    return torch.promote_types(logits_PV.dtype, torch.float32)
