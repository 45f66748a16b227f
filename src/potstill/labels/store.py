"""The labels of a split on disk: written once, shard by shard; verified as a whole; then read row by row.

``store.json``, written last, says what the labels are and lists the shards. Every shard repeats what it is bound to,
so an edited index, a shard of another store, another teacher, tokenizer or text is found before it is used.

Shapes: N sequences, B rows of a batch, S shards.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.core.durable import write_json
from potstill.core.errors import BugError, InputError
from potstill.data.sequences import PackedSequences
from potstill.labels.coder import Reader, coder_of, reader_of
from potstill.labels.draws import DrawsReader
from potstill.labels.index import INDEX, SHARDS, Index, ShardEntry, check_listing, check_shard, read_index
from potstill.labels.kinds import Draws, SoftLabels
from potstill.labels.prior import PRIOR, Prior, read_prior, write_prior
from potstill.labels.settings import LabelKind
from potstill.labels.shard import AGAIN, read_shard, write_shard

__all__ = ["LabelStore", "LabelWriter", "shard_ranges"]

_SEQUENCES_PER_SHARD = 256
_MOST_SHARDS = 256  # each is an open file while the store is


def shard_ranges(num_sequences: int, sequences_per_shard: int | None = None) -> list[range]:
    """The sequences of each shard of a store."""
    size = sequences_per_shard or max(_SEQUENCES_PER_SHARD, -(-num_sequences // _MOST_SHARDS))
    return [range(first, min(first + size, num_sequences)) for first in range(0, num_sequences, size)]


class LabelWriter:
    """Writes the shards that are missing, in any order and by any number of processes, then the index.

    The bytes depend on the labels, the text and ``sequences_per_shard`` only: not on how often it was interrupted.
    """

    def __init__(
        self,
        directory: Path,
        kind: LabelKind,
        *,
        vocabulary: int,
        sequences: PackedSequences,
        teacher_fingerprint: str,
        tokenizer_fingerprint: str,
        prior: Prior | None = None,
        sequences_per_shard: int | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._sequences = sequences
        self._coder = coder_of(kind, vocabulary, sequences, prior)
        self._index = Index(
            version=4,
            kind=kind,
            vocabulary=vocabulary,
            teacher=teacher_fingerprint,
            tokenizer=tokenizer_fingerprint,
            prior=None if prior is None else write_prior(directory / PRIOR, prior),
            shards=(),
        )
        self._ranges = shard_ranges(len(sequences), sequences_per_shard)

    def missing(self) -> list[range]:
        """The ranges of sequences whose shard isn't there, or isn't whole, or belongs to something else."""
        return [rows for rows in self._ranges if self._entry(rows) is None]

    def write(self, rows: range, parts: Iterable[SoftLabels | Draws]) -> None:
        """Write the labels of one of the ranges of ``missing``: its rows' scored positions in order, in any parts.

        Raises: BugError: these are not the labels of these rows.
        """
        if rows not in self._ranges:
            raise BugError(f"rows {rows.start} to {rows.stop} are no shard of this store")
        (self._directory / INDEX).unlink(missing_ok=True)
        hashes = [self._sequences.token_hash(row) for row in rows]
        lengths_N, encoded = self._coder.body(rows, parts)
        write_shard(self._path(rows), rows, self._index.binding, hashes, lengths_N, encoded)

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
            shard = read_shard(self._path(rows))
            check_shard(self._path(rows), shard, self._index.binding, self._sequences, rows)
        except InputError:
            return None
        return ShardEntry(
            file=self._path(rows).name,
            first=rows.start,
            sequences=len(rows),
            positions=int(self._sequences.scored_of(slice(rows.start, rows.stop)).sum()),
            sha256=shard.sha256,
        )

    def _path(self, rows: range) -> Path:
        return self._directory / f"shard-{rows.start:08d}.labels"


class LabelStore:
    """Labels that were verified when the store was opened, read at random."""

    def __init__(self, directory: Path, index: Index, reader: Reader) -> None:
        self._directory = directory
        self._index = index
        self._reader = reader

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        sequences: PackedSequences,
        teacher_fingerprint: str,
        tokenizer_fingerprint: str,
        first_rows: int | None = None,
    ) -> "LabelStore":
        """Open the labels of exactly these sequences, after reading and checking every byte of them.

        With ``first_rows`` all is checked just so, but only the shards that hold those rows can be read.

        Raises: InputError: naming the file that is missing, damaged, doubled or foreign, and what is wrong with it.
        Cost: sampled labels of the rows that can be read are decoded here, once; see ``DrawsReader``.
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
        prior = _prior_of(directory, index)
        positions_N = sequences.scored_by_row
        shards = []
        for entry in index.shards:
            shard = read_shard(directory / entry.file)
            rows = range(entry.first, entry.first + entry.sequences)
            check_shard(directory / entry.file, shard, index.binding, sequences, rows)
            if (shard.sha256, int(positions_N[rows.start : rows.stop].sum())) != (entry.sha256, entry.positions):
                raise InputError(
                    "is another shard than the index lists", where=str(directory / entry.file), next_step=AGAIN
                )
            if first_rows is None or entry.first < first_rows:
                shards.append(shard)
        readable = sequences.first(shards[-1].rows.stop if shards else 0)
        return cls(directory, index, reader_of(index.kind, index.vocabulary, readable, prior, shards))

    @property
    def kind(self) -> LabelKind:
        """What kind of labels these are."""
        return self._index.kind

    @property
    def vocabulary(self) -> int:
        """V."""
        return self._index.vocabulary

    @property
    def facts(self) -> Mapping[str, Any]:
        """``kind``, ``tokens`` (scored positions), ``bytes`` of all files of the store, ``bytes_per_token``."""
        names = [INDEX, *(entry.file for entry in self._index.shards), *([PRIOR] if self._index.prior else [])]
        num_bytes = sum((self._directory / name).stat().st_size for name in names)
        tokens = sum(entry.positions for entry in self._index.shards)
        return {
            "kind": self.kind.kind,
            "tokens": tokens,
            "bytes": num_bytes,
            "bytes_per_token": num_bytes / max(tokens, 1),
        }

    @property
    def true_logprobs(self) -> NDArray[np.float32] | None:
        """What the teacher gives to the token that really follows, at every readable position; only draws keep it.

        Returns: nats, to the precision of the store's levels; None of other labels.
        """
        return self._reader.true_logprobs if isinstance(self._reader, DrawsReader) else None

    def read(self, rows_B: NDArray[np.int64] | Sequence[int]) -> SoftLabels:
        """The labels of these rows' scored positions, in the order of the rows given, then of the positions."""
        return self._reader.read(np.asarray(rows_B, dtype=np.int64))


def _prior_of(directory: Path, index: Index) -> Prior | None:
    """The prior that the index names, if it names one.

    Raises: InputError: it is missing, damaged, another, or of another vocabulary.
    """
    if index.prior is None:
        return None
    prior, digest = read_prior(directory / PRIOR)
    if digest != index.prior:
        raise InputError("is another prior than the index names", where=str(directory / PRIOR), next_step=AGAIN)
    if prior.vocabulary != index.vocabulary:
        problem = f"has a vocabulary of {prior.vocabulary:,} where the index says {index.vocabulary:,}"
        raise InputError(problem, where=str(directory / PRIOR), next_step=AGAIN)
    return prior
