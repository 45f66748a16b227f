"""What a student is trained to make small: weighted divergences, summed over scored positions.

Shapes: P scored positions, V vocabulary, D width of the hidden states.

Everything here is a *sum* over positions. The caller divides by the number of scored positions of the whole batch, so
neither the split into micro-batches nor the number of processes changes what is computed.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from potstill.core.errors import BugError
from potstill.distill.divergences import (
    cross_entropy,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    total_variation,
)
from potstill.distill.settings import (
    CrossEntropy,
    Divergence,
    ForwardKl,
    HiddenStates,
    JensenShannon,
    Loss,
    ReverseKl,
    SkewKl,
    SkewReverseKl,
    TotalVariation,
    temperature_of,
)
from potstill.labels.kinds import DenseLabels, SoftLabels

__all__ = ["TOTAL", "Objective", "divergence", "objective_from_hidden"]

TOTAL = "total"
"""The key of the weighted sum of all losses: what ``backward`` is called on."""


class Objective:
    """The losses of a recipe as one function of the student's logits; check them with ``check_losses`` before.

    Hidden states aren't logits: ``distill.hidden`` matches those.
    """

    def __init__(self, losses: Sequence[Loss]) -> None:
        self._all = tuple(losses)
        self._losses = tuple(loss for loss in losses if not isinstance(loss, HiddenStates))

    @property
    def names(self) -> tuple[str, ...]:
        """The kinds of the losses, in the recipe's order."""
        return tuple(loss.kind for loss in self._all)

    @property
    def divergences(self) -> tuple[Divergence, ...]:
        """Those of the losses that compare the student with the teacher's soft labels."""
        return tuple(loss for loss in self._losses if isinstance(loss, Divergence))

    def __call__(self, logits_PV: Tensor, labels: SoftLabels | None, targets_P: Tensor) -> dict[str, Tensor]:
        """Each loss, unweighted, and their weighted sum under ``TOTAL``, summed over the P positions.

        A divergence at temperature τ enters the total times τ², which keeps its gradient on the scale of the others
        (Hinton et al. 2015, section 2.1); its own entry is the plain divergence of the softened distributions.

        Returns: float32 scalars in nats; 0.0, with a gradient path, if P is 0.
        Raises: BugError: a loss needs labels and there are none.
        """
        sums: dict[str, Tensor] = {}
        total = torch.zeros((), dtype=torch.float32, device=logits_PV.device)
        for loss in self._losses:
            if isinstance(loss, CrossEntropy):
                nats_P, scale = cross_entropy(logits_PV, targets_P), loss.weight
            elif labels is None:
                raise BugError(f"{loss.kind} needs soft labels, and none were given", where="Objective")
            else:
                nats_P = _softened_divergence(loss, logits_PV, labels)
                scale = loss.weight * temperature_of(loss) ** 2
            sums[loss.kind] = nats_P.sum()
            total = total + scale * sums[loss.kind]
        return {**sums, TOTAL: total}


def objective_from_hidden(
    objective: Objective,
    hidden_PD: Tensor,
    head: Callable[[Tensor], Tensor],
    labels: SoftLabels | None,
    targets_P: Tensor,
    *,
    head_parameters: Iterable[Tensor],
    chunk: int,
) -> dict[str, Tensor]:
    """The objective of ``head(hidden_PD)`` without ever holding the logits of more than ``chunk`` positions.

    The objective is a sum over positions, so each chunk's part of the gradient is known once its logits are, and is
    taken then and there; the head never runs twice. ``head_parameters`` are all that ``head`` learns by.

    Returns: what the objective returns on all positions at once, up to the rounding of a sum; only the value under
    ``TOTAL`` has a gradient, which can be asked for once.
    Cost: of the head's parameters a gradient and, while a chunk is worked on, that chunk's part of it.
    Source: Hsu et al. 2024 (Liger Kernel), section 3.2, fused linear cross-entropy.
    """
    learning = [tensor for tensor in (hidden_PD, *head_parameters) if tensor.requires_grad and torch.is_grad_enabled()]
    sums: dict[str, Tensor] = {}
    gradients = [torch.zeros_like(tensor) for tensor in learning]
    for start in range(0, max(len(hidden_PD), 1), chunk):
        positions = slice(start, start + chunk)
        chunk_PD = hidden_PD.detach()[positions].requires_grad_(hidden_PD.requires_grad)
        part_of_labels = None if labels is None else labels.at(positions)
        part = objective(head(chunk_PD), part_of_labels, targets_P[positions])
        if learning:
            leaves = [chunk_PD if tensor is hidden_PD else tensor for tensor in learning]
            for tensor, gradient, found in zip(
                learning, gradients, torch.autograd.grad(part[TOTAL], leaves), strict=True
            ):
                (gradient[positions] if tensor is hidden_PD else gradient).add_(found)
        sums = {name: value.detach() + sums.get(name, 0.0) for name, value in part.items()}
    if learning:
        sums[TOTAL] = _WithGradients.apply(sums[TOTAL], *gradients, *learning)  # type: ignore[no-untyped-call]
    return sums


class _WithGradients(torch.autograd.Function):
    """A value whose gradients are known: ``value, *gradients, *inputs`` → value."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *gradients_then_inputs: Tensor) -> Tensor:  # noqa: ANN401 - torch's context
        ctx.save_for_backward(*gradients_then_inputs[: len(gradients_then_inputs) // 2])
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's context
        gradients = [gradient.mul_(grads[0]) for gradient in ctx.saved_tensors]
        return (None, *(None for _ in gradients), *gradients)


def divergence(loss: Divergence, logits_PV: Tensor, labels: SoftLabels) -> Tensor:
    """The divergence that a recipe names, at each position and at temperature 1: [P]."""
    match loss:
        case ForwardKl():
            return forward_kl(logits_PV, labels)
        case ReverseKl():
            return reverse_kl(logits_PV, labels)
        case JensenShannon(beta=beta):
            return jensen_shannon(logits_PV, labels, beta=beta)
        case SkewKl(alpha=alpha):
            return skew_kl(logits_PV, labels, alpha=alpha)
        case SkewReverseKl(alpha=alpha):
            return skew_reverse_kl(logits_PV, labels, alpha=alpha)
        case TotalVariation():
            return total_variation(logits_PV, labels)


def _softened_divergence(loss: Divergence, logits_PV: Tensor, labels: SoftLabels) -> Tensor:
    temperature = temperature_of(loss)
    if temperature == 1.0:
        return divergence(loss, logits_PV, labels)
    if not isinstance(labels, DenseLabels):
        raise BugError("only dense labels can be softened again; check_losses refuses others", where="Objective")
    softened = DenseLabels((labels.logprobs_PV / temperature).log_softmax(-1))
    return divergence(loss, logits_PV.float() / temperature, softened)
