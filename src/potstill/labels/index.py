"""What a label store says it is, and every check that its shards bear it out.

Shapes: N sequences.
"""

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError

from potstill.core.durable import canonical_json, read_json
from potstill.core.errors import InputError
from potstill.core.settings import Settings
from potstill.data.sequences import PackedSequences
from potstill.labels.settings import LabelKind
from potstill.labels.shard import AGAIN, Shard

__all__ = [
    "INDEX",
    "SHARDS",
    "Index",
    "ShardEntry",
    "check_listing",
    "check_shard",
    "read_index",
]

INDEX = "store.json"
SHARDS = "shard-*.labels"


class ShardEntry(Settings):
    file: str = Field(pattern=r"^shard-[0-9]{8,}\.labels$")
    first: NonNegativeInt
    sequences: PositiveInt
    positions: NonNegativeInt
    sha256: str


class Index(Settings):
    """What ``store.json`` says."""

    version: Literal[4]
    kind: LabelKind
    vocabulary: PositiveInt
    teacher: str
    tokenizer: str
    prior: str | None = Field(default=None, description="sha256 of the prior that draws are coded against")
    shards: tuple[ShardEntry, ...]

    @property
    def binding(self) -> bytes:
        """What every shard must carry: sha256 of everything that tells this store from another."""
        shared = self.model_dump(mode="json", exclude={"shards"})
        return hashlib.sha256(canonical_json(shared).encode()).digest()


def read_index(path: Path) -> Index:
    if not path.exists():
        raise InputError("has no index, so it is no finished label store", where=str(path.parent), next_step=AGAIN)
    try:
        return Index.model_validate(read_json(path), strict=False)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        raise InputError(f"is no index of labels: {problems}", where=str(path), next_step=AGAIN) from error


def check_listing(directory: Path, index: Index, num_sequences: int) -> None:
    """Every sequence in exactly one shard, and no shard beside the listed ones."""
    path = str(directory / INDEX)
    expected = 0
    for entry in index.shards:
        if entry.first != expected:
            what = "lists a shard twice or out of order" if entry.first < expected else "doesn't list a shard"
            raise InputError(
                f"{what}: {entry.file} starts at row {entry.first}, not {expected}", where=path, next_step=AGAIN
            )
        expected += entry.sequences
    if expected != num_sequences:
        what = f"holds labels of {expected:,} sequences where the text has {num_sequences:,}"
        raise InputError(what, where=path, next_step=AGAIN)
    strays = sorted({file.name for file in directory.glob(SHARDS)} - {entry.file for entry in index.shards})
    if strays:
        raise InputError(
            "isn't listed in the index of its label store", where=str(directory / strays[0]), next_step=AGAIN
        )


def check_shard(path: Path, shard: Shard, binding: bytes, sequences: PackedSequences, rows: range) -> None:
    """The shard is bound to this store, stands for these rows, and was computed on these very tokens."""
    if shard.binding != binding:
        problem = "belongs to another store: of another kind, vocabulary, teacher or tokenizer than the index says"
        raise InputError(problem, where=str(path), next_step=AGAIN)
    if shard.rows != rows:
        problem = f"holds rows {shard.rows.start} to {shard.rows.stop} where {rows.start} to {rows.stop} belong"
        raise InputError(problem, where=str(path), next_step=AGAIN)
    for row, found in zip(rows, shard.hashes, strict=True):
        if found != sequences.token_hash(row):
            raise InputError(f"was computed on another text: row {row} differs", where=str(path), next_step=AGAIN)
    positions_N = sequences.scored_of(slice(rows.start, rows.stop)).tolist()
    for row, length, positions in zip(rows, shard.lengths_N.tolist(), positions_N, strict=True):
        if bool(length) != bool(positions):
            problem = f"holds {length} bytes of labels for the {positions} scored positions of row {row}"
            raise InputError(problem, where=str(path), next_step=AGAIN)
