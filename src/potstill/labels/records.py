"""Labels whose records are all of one size: a row's bytes are its positions' records, one after the other.

Shapes: N sequences of a shard, P scored positions, R bytes of a record.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from potstill.core.errors import BugError, InputError
from potstill.data.sequences import PackedSequences
from potstill.labels.codec import Codec
from potstill.labels.kinds import Draws, SoftLabels
from potstill.labels.shard import AGAIN, Shard

__all__ = ["RecordsCoder", "RecordsReader"]


class RecordsCoder:
    """Encodes labels part by part, as they are made."""

    def __init__(self, sequences: PackedSequences, codec: Codec) -> None:
        self._positions_N = sequences.scored_by_row
        self._codec = codec

    def body(self, rows: range, parts: Iterable[SoftLabels | Draws]) -> tuple[NDArray[np.int64], Iterator[bytes]]:
        """How many bytes each row takes, and the bytes, made while they are written."""
        positions_N = self._positions_N[rows.start : rows.stop]
        return positions_N * self._codec.record_bytes, self._encoded(int(positions_N.sum()), parts)

    def _encoded(self, expected: int, parts: Iterable[SoftLabels | Draws]) -> Iterator[bytes]:
        num_positions = 0
        for labels in parts:
            if isinstance(labels, Draws):
                raise BugError("a store of log-probabilities was given draws")
            num_positions += len(labels)
            yield self._codec.encode(labels).tobytes()
        if num_positions != expected:
            raise BugError(f"{num_positions} labels were given for {expected} scored positions")


class RecordsReader:
    """Decodes the rows that are asked for from memory-mapped shards."""

    def __init__(self, sequences: PackedSequences, codec: Codec, shards: Sequence[Shard]) -> None:
        self._codec = codec
        positions_N = sequences.scored_by_row
        self._records_by_shard = []
        for shard in shards:
            if not np.array_equal(shard.lengths_N, positions_N[list(shard.rows)] * codec.record_bytes):
                problem = f"doesn't hold records of {codec.record_bytes} bytes"
                raise InputError(problem, where=str(shard.path), next_step=AGAIN)
            self._records_by_shard.append(shard.body.reshape(-1, codec.record_bytes))
        counts_S = [len(shard.rows) for shard in shards]
        self._shard_N = np.repeat(np.arange(len(shards)), counts_S)
        before_N = np.cumsum(positions_N) - positions_N
        firsts_S = np.array([shard.rows.start for shard in shards], dtype=np.int64)
        self._start_N = before_N - before_N[firsts_S].repeat(counts_S)
        self._end_N = self._start_N + positions_N

    def read(self, rows_B: NDArray[np.int64]) -> SoftLabels:
        """The labels of these rows' scored positions, in the order of the rows given, then of the positions."""
        where = zip(
            self._shard_N[rows_B].tolist(), self._start_N[rows_B].tolist(), self._end_N[rows_B].tolist(), strict=True
        )
        parts = [self._records_by_shard[shard][start:end] for shard, start, end in where]
        empty = np.empty((0, self._codec.record_bytes), dtype=np.uint8)
        return self._codec.decode(np.concatenate(parts) if parts else empty)
