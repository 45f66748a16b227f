"""What a student is trained to make small: weighted divergences, summed over scored positions.

Shapes: P scored positions, V vocabulary, D width of the hidden states.

Everything here is a *sum* over positions. The caller divides by the number of scored positions of the whole batch, so
neither the split into micro-batches nor the number of processes changes what is computed.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

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
    """The losses of a recipe as one function of the student's logits; check them with ``check_losses`` before."""

    def __init__(self, losses: Sequence[Loss]) -> None:
        self._losses = tuple(losses)

    @property
    def names(self) -> tuple[str, ...]:
        """The kinds of the losses, in the recipe's order: the keys of the result besides ``TOTAL``."""
        return tuple(loss.kind for loss in self._losses)

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
    chunk: int,
) -> dict[str, Tensor]:
    """The objective of ``head(hidden_PD)`` without ever holding more than ``chunk`` positions of logits.

    Returns: what the objective returns on all positions at once, up to the rounding of a sum.
    Cost: the head runs twice per position where gradients are wanted: its logits are made again on the way back.
    """

    def of_chunk(chunk_PD: Tensor, start: int) -> dict[str, Tensor]:
        positions = slice(start, start + chunk)
        return objective(head(chunk_PD), None if labels is None else labels.at(positions), targets_P[positions])

    if len(hidden_PD) <= chunk:
        return of_chunk(hidden_PD, 0)
    sums: dict[str, Tensor] = {}
    for start in range(0, len(hidden_PD), chunk):
        part = checkpoint(of_chunk, hidden_PD[start : start + chunk], start, use_reentrant=False)
        sums = {name: sums[name] + value if sums else value for name, value in part.items()}
    return sums


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
