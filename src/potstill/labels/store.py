"""The labels of a split on disk: written once, shard by shard; verified as a whole; then read row by row.

``store.json``, written last, says what the labels are and lists the shards. Every shard repeats what it is bound to,
so an edited index, a shard of another store, another teacher, tokenizer or text is found before it is used.

Shapes: N sequences, B rows of a batch, S shards.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.core.durable import write_json
from potstill.core.errors import BugError, InputError
from potstill.data.sequences import PackedSequences
from potstill.labels.codec import codec_of
from potstill.labels.index import (
    AGAIN,
    INDEX,
    SHARDS,
    Index,
    ShardEntry,
    check_listing,
    check_shard,
    positions_per_row,
    read_index,
)
from potstill.labels.kinds import SoftLabels
from potstill.labels.settings import Dense, TopK
from potstill.labels.shard import Records, Shard, read_shard, write_shard

__all__ = ["LabelStore", "LabelWriter"]

_SEQUENCES_PER_SHARD = 256
_MOST_SHARDS = 256  # each is an open file while the store is


class LabelWriter:
    """Writes the shards that are missing, in any order and by any number of processes, then the index.

    The bytes depend on the labels, the text and ``sequences_per_shard`` only: not on how often it was interrupted.
    """

    def __init__(
        self,
        directory: Path,
        kind: TopK | Dense,
        *,
        vocabulary: int,
        sequences: PackedSequences,
        teacher_fingerprint: str,
        tokenizer_fingerprint: str,
        sequences_per_shard: int | None = None,
    ) -> None:
        size = sequences_per_shard or max(_SEQUENCES_PER_SHARD, -(-len(sequences) // _MOST_SHARDS))
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._sequences = sequences
        self._codec = codec_of(kind, vocabulary)
        self._index = Index(
            version=1,
            kind=kind,
            vocabulary=vocabulary,
            teacher=teacher_fingerprint,
            tokenizer=tokenizer_fingerprint,
            shards=(),
        )
        self._ranges = [range(first, min(first + size, len(sequences))) for first in range(0, len(sequences), size)]

    def missing(self) -> list[range]:
        """The ranges of sequences whose shard isn't there, or isn't whole, or belongs to something else."""
        return [rows for rows in self._ranges if self._entry(rows) is None]

    def write(self, rows: range, parts: Iterable[SoftLabels]) -> None:
        """Write the labels of one of the ranges of ``missing``: its rows' scored positions in order, in any parts.

        Raises: BugError: these are not the labels of these rows.
        """
        if rows not in self._ranges:
            raise BugError(f"rows {rows.start} to {rows.stop} are no shard of this store")
        (self._directory / INDEX).unlink(missing_ok=True)
        hashes = [self._sequences.token_hash(row) for row in rows]
        write_shard(self._path(rows), rows, self._index.binding, hashes, self._encoded(rows, parts))

    def _encoded(self, rows: range, parts: Iterable[SoftLabels]) -> Iterator[Records]:
        num_positions = 0
        for labels in parts:
            num_positions += len(labels)
            yield self._codec.encode(labels)
        expected = int(positions_per_row(self._sequences)[rows.start : rows.stop].sum())
        if num_positions != expected:
            raise BugError(f"{num_positions} labels were given for {expected} scored positions")

    def finish(self) -> None:
        """Write the index, which makes the directory a store; what an earlier try left behind is removed.

        Raises: BugError: a shard is missing still.
        """
        entries = [self._entry(rows) for rows in self._ranges]
        whole = tuple(entry for entry in entries if entry is not None)
        if len(whole) < len(entries):
            raise BugError(
                f"{len(entries) - len(whole)} of {len(entries)} shards are missing", where=f"{self._directory}"
            )
        found = {*self._directory.glob(SHARDS), *self._directory.glob(".*.partial")}
        for stray in found - {self._directory / entry.file for entry in whole}:
            stray.unlink()
        index = self._index.model_copy(update={"shards": whole})
        write_json(self._directory / INDEX, index.model_dump(mode="json"))

    def _entry(self, rows: range) -> ShardEntry | None:
        """What the index will say of this range's shard; None if that must be written again."""
        try:
            shard = read_shard(self._path(rows), self._codec.record_bytes)
            check_shard(self._path(rows), shard, self._index.binding, self._sequences, rows)
        except InputError:
            return None
        return ShardEntry(
            file=self._path(rows).name,
            first=rows.start,
            sequences=len(rows),
            positions=len(shard.records_PR),
            sha256=shard.sha256,
        )

    def _path(self, rows: range) -> Path:
        return self._directory / f"shard-{rows.start:08d}.labels"


class LabelStore:
    """Labels that were verified when the store was opened, read at random."""

    def __init__(self, directory: Path, index: Index, shards: Sequence[Shard], positions_N: NDArray[np.int64]) -> None:
        self._directory = directory
        self._index = index
        self._codec = codec_of(index.kind, index.vocabulary)
        self._records_by_shard = [shard.records_PR for shard in shards]
        counts_S = [len(shard.rows) for shard in shards]
        self._shard_N = np.repeat(np.arange(len(shards)), counts_S)
        before_N = np.cumsum(positions_N) - positions_N
        firsts_S = np.array([shard.rows.start for shard in shards], dtype=np.int64)
        self._start_N = before_N - before_N[firsts_S].repeat(counts_S)
        self._end_N = self._start_N + positions_N

    @classmethod
    def open(
        cls, directory: Path, *, sequences: PackedSequences, teacher_fingerprint: str, tokenizer_fingerprint: str
    ) -> "LabelStore":
        """Open the labels of exactly these sequences, after reading and checking every byte of them.

        Raises: InputError: naming the file that is missing, damaged, doubled or foreign, and what is wrong with it.
        """
        path = directory / INDEX
        index = read_index(path)
        for what, said, wanted in (
            ("teacher", index.teacher, teacher_fingerprint),
            ("tokenizer", index.tokenizer, tokenizer_fingerprint),
        ):
            if said != wanted:
                problem = f"holds labels of another {what}: {said[:12]}…, not {wanted[:12]}…"
                raise InputError(problem, where=str(path), next_step=AGAIN)
        check_listing(directory, index, len(sequences))
        codec = codec_of(index.kind, index.vocabulary)
        shards = []
        for entry in index.shards:
            shard = read_shard(directory / entry.file, codec.record_bytes)
            rows = range(entry.first, entry.first + entry.sequences)
            check_shard(directory / entry.file, shard, index.binding, sequences, rows)
            if (shard.sha256, len(shard.records_PR)) != (entry.sha256, entry.positions):
                raise InputError(
                    "is another shard than the index lists", where=str(directory / entry.file), next_step=AGAIN
                )
            shards.append(shard)
        return cls(directory, index, shards, positions_per_row(sequences))

    @property
    def kind(self) -> TopK | Dense:
        """What kind of labels these are."""
        return self._index.kind

    @property
    def vocabulary(self) -> int:
        """V."""
        return self._index.vocabulary

    @property
    def facts(self) -> Mapping[str, Any]:
        """``kind``, ``tokens`` (scored positions), ``bytes`` of all files of the store, ``bytes_per_token``."""
        files = [self._directory / INDEX, *(self._directory / entry.file for entry in self._index.shards)]
        num_bytes = sum(file.stat().st_size for file in files)
        tokens = sum(entry.positions for entry in self._index.shards)
        return {
            "kind": self.kind.kind,
            "tokens": tokens,
            "bytes": num_bytes,
            "bytes_per_token": num_bytes / max(tokens, 1),
        }

    def read(self, rows_B: NDArray[np.int64] | Sequence[int]) -> SoftLabels:
        """The labels of these rows' scored positions, in the order of the rows given, then of the positions."""
        rows = np.asarray(rows_B, dtype=np.int64)
        where = zip(self._shard_N[rows].tolist(), self._start_N[rows].tolist(), self._end_N[rows].tolist(), strict=True)
        parts = [self._records_by_shard[shard][start:end] for shard, start, end in where]
        empty = np.empty((0, self._codec.record_bytes), dtype=np.uint8)
        return self._codec.decode(np.concatenate(parts) if parts else empty)
