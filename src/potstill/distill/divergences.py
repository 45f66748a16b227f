"""How far a student's next-token distribution is from the teacher's, per scored position, in nats.

Shapes: P scored positions, V vocabulary, K tokens of a label, O outcomes that a label tells apart.

With p the teacher's and q the student's masses over the outcomes of a label, all divergences but total variation are
made of one: KL of a distribution to a mixture of itself and another. Dense labels give each over the whole vocabulary.
Top-k labels give it between the distributions over the K kept tokens and one bucket for all others: never more than
the full one, as for every f-divergence, zero only if those agree, and equal to the full one when K = V. Sampled labels
carry only what is linear in the teacher's probabilities, the forward KL; the others are refused.

What the teacher rules out costs a student that doesn't an infinite reverse KL, and the reverse an infinite forward KL;
gradients stay finite.

Source: data processing, Csiszár 1967; for KL the log-sum inequality (Cover & Thomas 2006, theorem 2.7.1).
"""

import math

import torch
from torch import Tensor

from potstill.core.errors import RecipeError
from potstill.distill.outcomes import log_masses, logprobs_at
from potstill.distill.settings import refusal
from potstill.labels.kinds import SampledLabels, SoftLabels

__all__ = [
    "cross_entropy",
    "forward_kl",
    "jensen_shannon",
    "reverse_kl",
    "skew_kl",
    "skew_reverse_kl",
    "total_variation",
]

_RULED_OUT = -65504.0
"""What the gradient takes for the teacher's log-probability of the impossible: the lowest that a label store keeps."""


def forward_kl(student_logits_PV: Tensor, labels: SoftLabels) -> Tensor:
    """KL(p || q), the teacher's entropy included.

    From draws its gradient, softmax - weights, is unbiased: its mean over all draws is the full distribution's. So is
    its value where ``labels.entropies_P`` is the entropy at that position; see there. A single one may be negative.

    Shapes: student_logits_PV any float dtype; ids of a top-k label distinct within a position.
    Returns: nats_P, float32 or wider.
    Cost: one P x V float32 buffer for top-k and sampled labels, about four for dense ones.
    """
    if isinstance(labels, SampledLabels):
        logprobs_PK = logprobs_at(student_logits_PV, labels.ids_PK)
        drawn_PK = torch.where(labels.weights_PK == 0, 0.0, logprobs_PK)
        return -(labels.weights_PK * drawn_PK).sum(-1) - labels.entropies_P
    return _kl_to_mixture(*_log_masses("forward_kl", student_logits_PV, labels), own_share=0.0)


def reverse_kl(student_logits_PV: Tensor, labels: SoftLabels) -> Tensor:
    """KL(q || p): what the student makes up costs most.

    Returns: nats_P, float32 or wider. Raises: RecipeError: the labels are draws.
    """
    log_teacher_PO, log_student_PO = _log_masses("reverse_kl", student_logits_PV, labels)
    ruled_out_P = ((log_teacher_PO == -torch.inf) & (log_student_PO.detach().exp() > 0)).any(-1)
    nats_P = _kl_to_mixture(log_student_PO, log_teacher_PO.clamp_min(_RULED_OUT), own_share=0.0)
    return nats_P + torch.where(ruled_out_P, torch.inf, 0.0)


def jensen_shannon(student_logits_PV: Tensor, labels: SoftLabels, *, beta: float) -> Tensor:
    """The generalised Jensen-Shannon divergence: beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q.

    At most the entropy of (beta, 1 - beta): ln 2 for beta = 0.5. It vanishes as beta tends to 0 or 1; divided by beta
    or by 1 - beta it tends to forward or reverse KL there.

    Returns: nats_P, float32 or wider. Raises: RecipeError: the labels are draws.
    Source: Agarwal et al. 2024 (GKD), eq. 1, whose convention for beta this is.
    """
    log_teacher_PO, log_student_PO = _log_masses("jensen_shannon", student_logits_PV, labels)
    to_teacher_P = _kl_to_mixture(log_teacher_PO, log_student_PO, own_share=beta)
    return beta * to_teacher_P + (1 - beta) * _kl_to_mixture(log_student_PO, log_teacher_PO, own_share=1 - beta)


def skew_kl(student_logits_PV: Tensor, labels: SoftLabels, *, alpha: float) -> Tensor:
    """KL(p || alpha p + (1 - alpha) q); at most -ln alpha.

    Returns: nats_P, float32 or wider. Raises: RecipeError: the labels are draws.
    Source: Ko et al. 2024 (DistiLLM), eq. 5.
    """
    return _kl_to_mixture(*_log_masses("skew_kl", student_logits_PV, labels), own_share=alpha)


def skew_reverse_kl(student_logits_PV: Tensor, labels: SoftLabels, *, alpha: float) -> Tensor:
    """KL(q || (1 - alpha) p + alpha q); at most -ln alpha.

    Returns: nats_P, float32 or wider. Raises: RecipeError: the labels are draws.
    Source: Ko et al. 2024 (DistiLLM), section 3.1.
    """
    log_teacher_PO, log_student_PO = _log_masses("skew_reverse_kl", student_logits_PV, labels)
    return _kl_to_mixture(log_student_PO, log_teacher_PO, own_share=alpha)


def total_variation(student_logits_PV: Tensor, labels: SoftLabels) -> Tensor:
    """Half the sum of |p - q|: the largest difference in the probability of any event, a share in [0, 1], no nats.

    Its gradient at an outcome where both agree is taken as 0.

    Returns: shares_P, float32 or wider. Raises: RecipeError: the labels are draws.
    """
    log_teacher_PO, log_student_PO = _log_masses("total_variation", student_logits_PV, labels)
    return 0.5 * (log_student_PO.exp() - log_teacher_PO.exp()).abs().sum(-1)


def cross_entropy(student_logits_PV: Tensor, targets_P: Tensor) -> Tensor:
    """Minus the log-probability that the student gives to the target token: the forward KL of a single, certain draw.

    The very arithmetic of a forward KL from draws, so that a step on labels and a plain step cost the same.

    Shapes: student_logits_PV any float dtype; targets_P int64.
    Returns: nats_P, float32 or wider.
    Cost: one P x V float32 buffer.
    """
    return -logprobs_at(student_logits_PV, targets_P.unsqueeze(-1)).squeeze(-1)


def _kl_to_mixture(log_a_PO: Tensor, log_b_PO: Tensor, *, own_share: float) -> Tensor:
    """KL(a || s a + (1 - s) b) with s = ``own_share`` < 1, where 0 log 0 = 0.

    The ratio of mixture to a is s + (1 - s) b / a: made from the difference of the logarithms, it keeps its digits
    where a and b are close, and its logarithm is finite where b = 0.
    """
    a_PO = log_a_PO.exp()
    log_ratio_PO = torch.where(a_PO == 0, 0.0, log_b_PO - log_a_PO)
    if own_share > 0:
        own = log_ratio_PO.new_tensor(math.log(own_share))
        log_ratio_PO = torch.logaddexp(log_ratio_PO + math.log1p(-own_share), own)
    return -(a_PO * log_ratio_PO).sum(-1)


def _log_masses(loss: str, student_logits_PV: Tensor, labels: SoftLabels) -> tuple[Tensor, Tensor]:
    if isinstance(labels, SampledLabels):
        raise RecipeError(
            f"{loss} can't be computed from sampled labels: {refusal(loss, 'sampled')}",
            next_step="use labels: {kind: top_k} or {kind: dense}, or the loss {kind: forward_kl}",
        )
    return log_masses(student_logits_PV, labels)
