"""A local teacher asked about rows of text: one pass, and labels of the positions that count.

Shapes: B rows of a batch, T tokens, P scored positions, D width, V vocabulary, U random numbers of a position.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from potstill.data.sequences import PackedSequences
from potstill.labels.kinds import Draws, SoftLabels
from potstill.labels.settings import Sampled
from potstill.model.anatomy import hidden_states, logits_of
from potstill.teacher.asking import draws_of, labels_of, uniforms_of
from potstill.teacher.settings import CaptureSettings

__all__ = ["Answers", "LocalTeacher", "labels_of_rows", "logits_of_rows"]

_LOGITS_AT_ONCE = 1 << 25
_LOGITS_AT_ONCE_ON_CPU = 1 << 21
"""Few enough that their buffers are used again, which is twice as fast as fresh ones."""


@dataclass(frozen=True)
class LocalTeacher:
    """Who is asked, for how many tokens' probabilities, and how."""

    model: PreTrainedModel
    vocabulary: int
    settings: CaptureSettings


class Answers:
    """What a teacher says of a text, batch by batch; what was looked at ahead isn't asked for again."""

    def __init__(self, teacher: LocalTeacher, sequences: PackedSequences) -> None:
        self.teacher, self.sequences = teacher, sequences
        self._kept: dict[range, list[SoftLabels | Draws]] = {}

    def batches(self, rows: range) -> Iterator[range]:
        """The batches of a range of rows."""
        size = self.teacher.settings.batch_sentences
        return (range(first, min(first + size, rows.stop)) for first in range(rows.start, rows.stop, size))

    def ahead(self, batch: range) -> list[SoftLabels | Draws]:
        """The labels of a batch that ``of`` will be asked for too, in parts."""
        self._kept[batch] = list(self.of(batch))
        return self._kept[batch]

    def of(self, batch: range) -> Iterator[SoftLabels | Draws]:
        """The labels of a batch, in parts."""
        if batch in self._kept:
            return iter(self._kept.pop(batch))
        return labels_of_rows(self.teacher, self.sequences, np.arange(batch.start, batch.stop))


def labels_of_rows(
    teacher: LocalTeacher, sequences: PackedSequences, rows_B: NDArray[np.int64]
) -> Iterator[SoftLabels | Draws]:
    """The labels of a batch, in parts small enough that their logits fit; only scored positions pass the head."""
    kind = teacher.settings.labels
    uniforms = uniforms_of(sequences, rows_B, kind, teacher.settings.seed) if isinstance(kind, Sampled) else np.empty(0)
    uniforms_PU = torch.from_numpy(uniforms).to(teacher.model.device)
    for part, logits_PV, targets_P in logits_of_rows(teacher, sequences, rows_B):
        with torch.inference_mode():
            if isinstance(kind, Sampled):
                labels: SoftLabels | Draws = draws_of(logits_PV, kind, uniforms_PU[part], targets_P)
            else:
                labels = labels_of(logits_PV, kind)
        yield labels.to("cpu")


def logits_of_rows(
    teacher: LocalTeacher, sequences: PackedSequences, rows_B: NDArray[np.int64]
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Which scored positions of a batch, the teacher's logits there, and the tokens that really follow; all in parts.

    Returns: slices of the batch's scored positions; logits [part, V] over the text's tokens; targets int64.
    """
    model = teacher.model
    device = model.device
    tokens, scored = sequences.rows(rows_B)
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=teacher.settings.precision == "bfloat16")
    with torch.inference_mode(), autocast:
        tokens_BT, scored_BT = torch.from_numpy(tokens).to(device), torch.from_numpy(scored).to(device)
        hidden_PD = hidden_states(model, tokens_BT)[scored_BT]
        targets_P = tokens_BT.roll(-1, dims=1)[scored_BT]
    at_once = _LOGITS_AT_ONCE_ON_CPU if device.type == "cpu" else _LOGITS_AT_ONCE
    size = max(at_once // teacher.vocabulary, 1)
    for first in range(0, len(hidden_PD), size):
        part = slice(first, first + size)
        with torch.inference_mode(), autocast:
            logits_PV = logits_of(model, hidden_PD[part])[:, : teacher.vocabulary]
        yield part, logits_PV, targets_P[part]
