"""One file of labels: those of a range of sequences, whole or refused.

    bytes            what
    8                magic, with the version of this layout
    32               binding: sha256 of what all shards of a store share (kind, vocabulary, teacher, tokenizer)
    4 + 4            first sequence, number of sequences N (uint32, little-endian)
    4 + 16, N times  length of each sequence's labels (uint32), hash of its tokens
    ...              the labels, sequence by sequence
    32               sha256 of all bytes before

Shapes: N sequences of the shard.
"""

import hashlib
import itertools
import mmap
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from potstill.core.durable import replacing
from potstill.core.errors import InputError

__all__ = ["AGAIN", "Shard", "read_shard", "write_shard"]

_MAGIC = b"PotLbl\x00\x02"
_HEADER = struct.Struct("<8s32sII")
_ROW = struct.Struct("<I16s")
_DIGEST_BYTES = 32
AGAIN = "delete the labels stage's directory; the next run captures them again"


@dataclass(frozen=True)
class Shard:
    """A verified, memory-mapped shard. Shapes: body uint8, the labels of all its sequences; lengths_N bytes of each."""

    path: Path
    rows: range
    binding: bytes
    hashes: tuple[bytes, ...]
    lengths_N: NDArray[np.int64]
    body: NDArray[np.uint8]
    sha256: str

    def piece(self, row: int) -> bytes:
        """The labels of one of its sequences."""
        end = int(self._ends[row - self.rows.start])
        return self.body[end - int(self.lengths_N[row - self.rows.start]) : end].tobytes()

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        ends_N: NDArray[np.int64] = np.cumsum(self.lengths_N)
        return ends_N


def write_shard(
    path: Path,
    rows: range,
    binding: bytes,
    hashes: Sequence[bytes],
    lengths_N: NDArray[np.int64],
    parts: Iterable[bytes],
) -> None:
    """Write a shard durably and in one step; its labels may come in parts, made while it is written."""
    digest = hashlib.sha256()
    table = [_ROW.pack(length, token_hash) for length, token_hash in zip(lengths_N.tolist(), hashes, strict=True)]
    with replacing(path) as temporary, temporary.open("wb") as file:
        for part in itertools.chain([_HEADER.pack(_MAGIC, binding, rows.start, len(rows)), *table], parts):
            digest.update(part)
            file.write(part)
        file.write(digest.digest())


def read_shard(path: Path) -> Shard:
    """Memory-map a shard and check it against its own checksum.

    Raises: InputError: the file is missing, cut short or changed.
    """
    try:
        with path.open("rb") as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError as error:
        raise InputError("is missing from the label store", where=str(path), next_step=AGAIN) from error
    except (OSError, ValueError) as error:
        raise InputError(f"can't be read: {error}", where=str(path), next_step=AGAIN) from error
    if len(content) < _HEADER.size + _DIGEST_BYTES:
        raise InputError("is cut short", where=str(path), next_step=AGAIN)
    digest = hashlib.sha256(content[:-_DIGEST_BYTES]).digest()
    if digest != content[-_DIGEST_BYTES:]:
        raise InputError("is damaged or cut short: its checksum doesn't hold", where=str(path), next_step=AGAIN)
    magic, binding, first, num_sequences = _HEADER.unpack_from(content)
    if magic != _MAGIC:
        raise InputError("is no label shard of this version", where=str(path), next_step=AGAIN)
    body_at = _HEADER.size + num_sequences * _ROW.size
    table = list(_ROW.iter_unpack(content[_HEADER.size : body_at])) if body_at <= len(content) - _DIGEST_BYTES else []
    lengths_N = np.array([length for length, _ in table], dtype=np.int64)
    body = np.frombuffer(content, dtype=np.uint8)[body_at:-_DIGEST_BYTES]
    if len(table) != num_sequences or int(lengths_N.sum()) != len(body):
        raise InputError("holds other labels than its own table says", where=str(path), next_step=AGAIN)
    return Shard(
        path=path,
        rows=range(first, first + num_sequences),
        binding=binding,
        hashes=tuple(token_hash for _, token_hash in table),
        lengths_N=lengths_N,
        body=body,
        sha256=digest.hex(),
    )
