"""One file of labels: those of a range of sequences, whole or refused.

    bytes            what
    8                magic, with the version of this layout
    32               binding: sha256 of what all shards of a store share (kind, vocabulary, teacher, tokenizer)
    4 + 4            first sequence, number of sequences N (uint32, little-endian)
    16 x N           hash of each sequence's tokens
    R x P            records of the scored positions, sequence by sequence
    32               sha256 of all bytes before

Shapes: N sequences of the shard, P scored positions, R bytes of a record.
"""

import hashlib
import itertools
import mmap
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from potstill.core.durable import replacing
from potstill.core.errors import InputError

__all__ = ["Records", "Shard", "read_shard", "write_shard"]

Records = NDArray[np.uint8]

_MAGIC = b"PotLbl\x00\x01"
_HEADER = struct.Struct("<8s32sII")
_HASH_BYTES = 16
_DIGEST_BYTES = 32
_AGAIN = "delete the labels stage's directory; the next run captures them again"


@dataclass(frozen=True)
class Shard:
    """A verified, memory-mapped shard. Shapes: records_PR uint8."""

    rows: range
    binding: bytes
    hashes: tuple[bytes, ...]
    records_PR: Records
    sha256: str


def write_shard(path: Path, rows: range, binding: bytes, hashes: Sequence[bytes], parts: Iterable[Records]) -> None:
    """Write a shard durably and in one step; its records may come in parts, made while it is written."""
    digest = hashlib.sha256()
    with replacing(path) as temporary, temporary.open("wb") as file:
        for part in itertools.chain(
            [_HEADER.pack(_MAGIC, binding, rows.start, len(rows)), *hashes], (records.tobytes() for records in parts)
        ):
            digest.update(part)
            file.write(part)
        file.write(digest.digest())


def read_shard(path: Path, record_bytes: int) -> Shard:
    """Memory-map a shard and check it against its own checksum.

    Raises: InputError: the file is missing, cut short, changed, or holds records of another size.
    """
    try:
        with path.open("rb") as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError as error:
        raise InputError("is missing from the label store", where=str(path), next_step=_AGAIN) from error
    except (OSError, ValueError) as error:
        raise InputError(f"can't be read: {error}", where=str(path), next_step=_AGAIN) from error
    if len(content) < _HEADER.size + _DIGEST_BYTES:
        raise InputError("is cut short", where=str(path), next_step=_AGAIN)
    digest = hashlib.sha256(content[:-_DIGEST_BYTES]).digest()
    if digest != content[-_DIGEST_BYTES:]:
        raise InputError("is damaged or cut short: its checksum doesn't hold", where=str(path), next_step=_AGAIN)
    magic, binding, first, num_sequences = _HEADER.unpack_from(content)
    if magic != _MAGIC:
        raise InputError("is no label shard of this version", where=str(path), next_step=_AGAIN)
    records_at = _HEADER.size + num_sequences * _HASH_BYTES
    records = np.frombuffer(content, dtype=np.uint8)[records_at:-_DIGEST_BYTES]
    if len(records) % record_bytes:
        raise InputError(f"doesn't hold records of {record_bytes} bytes", where=str(path), next_step=_AGAIN)
    hashes = content[_HEADER.size : records_at].tobytes()
    return Shard(
        rows=range(first, first + num_sequences),
        binding=binding,
        hashes=tuple(hashes[at : at + _HASH_BYTES] for at in range(0, len(hashes), _HASH_BYTES)),
        records_PR=records.reshape(-1, record_bytes),
        sha256=digest.hex(),
    )
