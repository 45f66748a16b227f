"""Labels to the bytes of a shard and back, for every kind behind one pair of protocols."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from potstill.core.errors import BugError
from potstill.data.sequences import PackedSequences
from potstill.labels.codec import codec_of
from potstill.labels.draws import DrawsCoder, DrawsReader
from potstill.labels.kinds import Draws, SoftLabels
from potstill.labels.prior import Prior
from potstill.labels.records import RecordsCoder, RecordsReader
from potstill.labels.settings import LabelKind, Sampled
from potstill.labels.shard import Shard

__all__ = ["Coder", "Reader", "coder_of", "reader_of"]


class Coder(Protocol):
    """Encodes the labels of a shard's rows."""

    def body(self, rows: range, parts: Iterable[SoftLabels | Draws]) -> tuple[NDArray[np.int64], Iterable[bytes]]:
        """The number of bytes of each row, and the bytes of all, in any parts."""
        ...


class Reader(Protocol):
    """Decodes the rows asked for."""

    def read(self, rows_B: NDArray[np.int64]) -> SoftLabels: ...


def coder_of(kind: LabelKind, vocabulary: int, sequences: PackedSequences, prior: Prior | None) -> Coder:
    """What writes labels of a kind."""
    if isinstance(kind, Sampled):
        return DrawsCoder(sequences, kind, _there(prior))
    return RecordsCoder(sequences, codec_of(kind, vocabulary))


def reader_of(
    kind: LabelKind, vocabulary: int, sequences: PackedSequences, prior: Prior | None, shards: Sequence[Shard]
) -> Reader:
    """What reads labels of a kind.

    Raises: InputError: what a shard holds isn't what its kind says, or not of its text.
    """
    if isinstance(kind, Sampled):
        return DrawsReader(sequences, kind, _there(prior), shards)
    return RecordsReader(sequences, codec_of(kind, vocabulary), shards)


def _there(prior: Prior | None) -> Prior:
    if prior is None:
        raise BugError("sampled labels are coded against a prior, and none was given")
    return prior
