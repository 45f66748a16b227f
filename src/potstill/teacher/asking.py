"""From a teacher's logits to soft labels of any kind.

Shapes: P scored positions, V vocabulary, N draws, U random numbers of a position.
"""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.core.errors import InputError, RecipeError
from potstill.data.sequences import PackedSequences
from potstill.labels.kinds import DenseLabels, Draws, SoftLabels, TopKLabels
from potstill.labels.settings import Dense, Sampled, TopK
from potstill.labels.weights import levels_of_weights

__all__ = ["draws_of", "labels_of", "logprobs_of", "uniforms_of"]


def logprobs_of(logits_PV: Tensor) -> Tensor:
    """Log-probabilities in float32.

    Raises: InputError: a logit is NaN or +inf.
    """
    logits_PV = logits_PV.float()
    log_total_P1 = logits_PV.logsumexp(-1, keepdim=True)
    if not log_total_P1.isfinite().all():
        raise InputError("the teacher's logits are NaN or infinite", next_step="check its weights and precision")
    return logits_PV - log_total_P1


def labels_of(logits_PV: Tensor, kind: TopK | Dense) -> SoftLabels:
    """The soft labels of a teacher's logits, in float32.

    The tail's mass is summed over the tokens that are left out, never taken as 1 - (kept mass), so a tiny one keeps
    its digits, and is exactly 0 where nothing is left out.

    Raises: RecipeError: more tokens are to be kept than there are. InputError: a logit is NaN or +inf.
    Cost: two P x V float32 copies.
    """
    logprobs_PV = logprobs_of(logits_PV)
    if isinstance(kind, Dense):
        return DenseLabels(logprobs_PV)
    if kind.k > logits_PV.shape[-1]:
        raise RecipeError(
            f"{kind.k} tokens are to be kept of a vocabulary of {logits_PV.shape[-1]}",
            where="labels.k",
            next_step="keep fewer, or use labels: {kind: dense}",
        )
    kept_PK, ids_PK = logprobs_PV.topk(kind.k, dim=-1)
    tail_P = logprobs_PV.scatter(-1, ids_PK, -torch.inf).logsumexp(-1).exp()
    return TopKLabels(ids_PK, kept_PK, tail_P)


def draws_of(logits_PV: Tensor, kind: Sampled, uniforms_PU: Tensor, targets_P: Tensor) -> Draws:
    """Draws from the teacher's distribution, at the kind's temperature, by inverting its cumulative sum.

    Probabilities are float32, their sums float64: each token is drawn as often as its probability says, to 1e-7 of it.

    Multinomial: draw i is the token at uniform i. Systematic: at (uniform + i) / N, so a token's count is N p rounded
    up or down, and N p on average. At a temperature other than 1, a token drawn with q instead of p weighs p / q, as
    the last of the uniforms rounds it; entropies and the true tokens' log-probabilities are p's all the same.

    Shapes: uniforms_PU float64 in [0, 1), U = N for multinomial draws, 1 for systematic ones, and one more where draws
    are weighted; targets_P int64, the tokens that really follow.
    Raises: InputError: a logit is NaN or +inf.
    Cost: a P x V float64 copy and two float32 ones; three more float64 ones at another temperature.
    """
    logprobs_PV = logprobs_of(logits_PV)
    probabilities_PV = logprobs_PV.exp()
    finite_PV = logprobs_PV.clamp_min(torch.finfo(torch.float32).min)
    entropies_P = -finite_PV.mul_(probabilities_PV).sum(-1)
    if kind.weighted:
        log_drawn_PV = (logprobs_PV.double() / kind.temperature).log_softmax(-1)
        probabilities_PV = log_drawn_PV.exp()
    cdf_PV = probabilities_PV.cumsum(-1, dtype=torch.float64)
    points_PN = uniforms_PU[:, : _num_points(kind)]
    if kind.sampling == "systematic":
        points_PN = (points_PN + torch.arange(kind.draws, device=uniforms_PU.device)) / kind.draws
    below_P1 = cdf_PV[:, -1:].nextafter(cdf_PV.new_zeros(1))  # a point at the very end would be no token's
    draws_PN = torch.searchsorted(cdf_PV, torch.minimum(points_PN * cdf_PV[:, -1:], below_P1), right=True)
    draws_PN = draws_PN.sort(dim=-1).values
    levels_PN = None
    if kind.weighted:
        log_weights_PN = logprobs_PV.gather(1, draws_PN).double() - log_drawn_PV.gather(1, draws_PN)
        levels_PN = levels_of_weights(log_weights_PN, uniforms_PU[:, -1:])
    true_P = logprobs_PV.gather(1, targets_P.unsqueeze(1)).squeeze(1)
    return Draws(draws_PN, entropies_P, true_P, logprobs_PV.argmax(-1), levels_PN)


def uniforms_of(sequences: PackedSequences, rows: NDArray[np.int64], kind: Sampled, seed: int) -> NDArray[np.float64]:
    """The random numbers of these rows' scored positions: a pure function of the seed and each row's tokens.

    Returns: float64 [P, U].
    """
    per_position = _num_points(kind) + (kind.weighted)
    counts = sequences.scored_of(rows).tolist()
    parts = [
        np.random.default_rng(
            [seed, int.from_bytes(hashlib.sha256(sequences.token_hash(row)).digest()[:8], "little")]
        ).random((count, per_position))
        for row, count in zip(rows.tolist(), counts, strict=True)
    ]
    return np.concatenate(parts) if parts else np.empty((0, per_position))


def _num_points(kind: Sampled) -> int:
    """How many random numbers a position's draws take."""
    return kind.draws if kind.sampling == "multinomial" else 1
