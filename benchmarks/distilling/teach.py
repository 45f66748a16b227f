"""Ways to tell a student what its teacher thinks: the whole distribution online, a store on disk, and ways tried only.

Every way is something with ``read(rows_B) -> SoftLabels``, which is all that the training loop asks of labels.

Shapes: B rows of a batch, P scored positions, V vocabulary, K kept tokens, N draws.
"""

import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from distilling.prepare import Prepared
from numpy.typing import NDArray
from torch import Tensor

from potstill.core.trace import Trace
from potstill.data.sequences import PackedSequences
from potstill.labels.kinds import DenseLabels, SampledLabels, SoftLabels
from potstill.labels.settings import Dense, LabelKind, Sampled
from potstill.labels.store import LabelStore
from potstill.model.store import load_model, model_fingerprint, tokenizer_fingerprint
from potstill.teacher.asking import uniforms_of
from potstill.teacher.capture import capture_labels
from potstill.teacher.local import LocalTeacher, labels_of_rows
from potstill.teacher.settings import CaptureSettings
from potstill.train.settings import Precision

__all__ = ["Online", "Way", "ask", "floor_bits", "head_and_tail", "priority", "stored"]

Estimate = Callable[[Tensor, Tensor], SampledLabels]
"""From log-probabilities [P, V] and uniforms [P, U] to labels and nothing else."""


class Online:
    """The teacher asked at every step; with ``estimate``, what is left of its answer by a way of sampling."""

    def __init__(
        self,
        prepared: Prepared,
        text: PackedSequences,
        *,
        precision: Precision,
        estimate: tuple[Estimate, int] | None = None,
        seed: int = 0,
    ) -> None:
        model = load_model(prepared.inputs["teacher"] / "model")
        settings = CaptureSettings(labels=Dense(), sentences=len(text), precision=precision)
        self.teacher = LocalTeacher(model, prepared.tokens.vocabulary, settings)
        self.text, self.estimate, self.seed = text, estimate, seed

    def read(self, rows_B: NDArray[np.int64] | Sequence[int]) -> SoftLabels:
        """The teacher's answer about these rows; the random numbers of a row are the same whenever it is asked for."""
        rows_B = np.asarray(rows_B, dtype=np.int64)
        dense = ask(self.teacher, self.text, rows_B)
        if self.estimate is None:
            return dense
        estimate, per_position = self.estimate
        one_each = uniforms_of(self.text, rows_B, Sampled(draws=1), self.seed)[:, 0].tolist()
        generators = (np.random.default_rng(int(uniform * 2**53)) for uniform in one_each)
        uniforms_PU = torch.from_numpy(np.stack([generator.random(per_position) for generator in generators]))
        return estimate(dense.logprobs_PV, uniforms_PU)


def ask(teacher: LocalTeacher, text: PackedSequences, rows_B: NDArray[np.int64]) -> DenseLabels:
    """The whole distribution at all scored positions of these rows."""
    parts = [part for part in labels_of_rows(teacher, text, rows_B) if isinstance(part, DenseLabels)]
    return DenseLabels(torch.cat([part.logprobs_PV for part in parts]))


@dataclass(frozen=True)
class Way:
    """A store that was opened, and what it takes on disk."""

    labels: LabelStore
    bytes_per_token: float


def stored(prepared: Prepared, text: PackedSequences, kind: LabelKind, *, seed: int, precision: Precision) -> Way:
    """The labels of this text as a recipe would have them: captured, written, verified, opened."""
    scratch = Path(tempfile.mkdtemp())
    try:
        settings = CaptureSettings(labels=kind, sentences=len(text), precision=precision, seed=seed)
        capture_labels(settings, prepared.inputs, scratch, Trace())
        store = LabelStore.open(
            scratch / "train",
            sequences=text,
            teacher_fingerprint=model_fingerprint(prepared.inputs["teacher"] / "model"),
            tokenizer_fingerprint=tokenizer_fingerprint(prepared.inputs["data"] / "tokenizer"),
        )
        return Way(store, store.facts["bytes_per_token"])
    finally:
        shutil.rmtree(scratch)  # what is open stays readable


def head_and_tail(head: int, draws: int) -> tuple[Estimate, int]:
    """The likeliest tokens with their exact probabilities, and systematic draws from all others."""

    def estimate(logprobs_PV: Tensor, uniforms_PU: Tensor) -> SampledLabels:
        probabilities_PV = logprobs_PV.double().exp()
        heads_PH, ids_PH = probabilities_PV.topk(head, dim=-1)
        tail_PV = probabilities_PV.scatter(-1, ids_PH, 0.0)
        cdf_PV = tail_PV.cumsum(-1)
        points_PN = (uniforms_PU[:, :1] + torch.arange(draws)) / draws * cdf_PV[:, -1:]
        below_P1 = cdf_PV[:, -1:].nextafter(cdf_PV.new_zeros(1))
        draws_PN = torch.searchsorted(cdf_PV, torch.minimum(points_PN, below_P1), right=True)
        shares_PN = (cdf_PV[:, -1:] / draws).expand_as(points_PN)
        ids_PK, weights_PK = torch.cat([ids_PH, draws_PN], 1), torch.cat([heads_PH, shares_PN], 1)
        entropies_P = torch.special.entr(probabilities_PV).sum(-1)
        return SampledLabels(ids_PK, weights_PK.float(), entropies_P.float())

    return estimate, 1


def priority(items: int, vocabulary: int) -> tuple[Estimate, int]:
    """The items of highest priority p / u, each with weight max(p, the first priority that is left out).

    Source: Duffield, Lund, Thorup 2007: the unbiased sample of fixed size whose variance is within one item of the
    least possible.
    """

    def estimate(logprobs_PV: Tensor, uniforms_PU: Tensor) -> SampledLabels:
        probabilities_PV = logprobs_PV.double().exp()
        top_PK, ids_PK = (probabilities_PV / uniforms_PU.clamp_min(1e-300)).topk(items + 1, dim=-1)
        weights_PK = torch.maximum(probabilities_PV.gather(1, ids_PK[:, :items]), top_PK[:, items:])
        entropies_P = torch.special.entr(probabilities_PV).sum(-1)
        return SampledLabels(ids_PK[:, :items], weights_PK.float(), entropies_P.float())

    return estimate, vocabulary


def floor_bits(logprobs_PV: Tensor, labels: SampledLabels, *, draws: int | None) -> float:
    """Mean bits of a position if its tokens were coded with the teacher's own probabilities.

    Draws: their counts as a multiset. Without ``draws``: a set of tokens, each with a byte for its weight where that
    isn't the smallest one of its position, and a byte for that.
    """
    nats_PK = -logprobs_PV.double().gather(1, labels.ids_PK)
    if draws is not None:
        counts_PK = (labels.weights_PK * draws).round().double()
        nats_P = torch.lgamma(counts_PK + 1).sum(1) - math.lgamma(draws + 1)
        nats_P += torch.where(counts_PK > 0, counts_PK * nats_PK, 0.0).sum(1)
        return float(nats_P.mean()) / math.log(2)
    least_P1 = labels.weights_PK.min(dim=1, keepdim=True).values
    byte_weights_P = (labels.weights_PK > least_P1 * 1.0001).sum(1).double() + 1
    set_nats_P = nats_PK.sum(1) - math.lgamma(nats_PK.shape[1] + 1)
    return float((set_nats_P / math.log(2) + 8 * byte_weights_P).mean())
