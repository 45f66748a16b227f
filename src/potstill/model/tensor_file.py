"""Put many safetensors files together into one, copying bytes, so that no tensor is ever in memory whole.

A file is 8 bytes of length, a JSON header, and the tensors' bytes one after another.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from potstill.core import interrupt
from potstill.core.durable import replacing

__all__ = ["concatenate"]

_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class _Piece:
    """Where the bytes of a tensor lie."""

    file: Path
    start: int
    entry: Mapping[str, Any]

    @property
    def num_bytes(self) -> int:
        begin, end = self.entry["data_offsets"]
        return int(end) - int(begin)


def concatenate(files: Sequence[Path], out: Path, metadata: Mapping[str, str]) -> None:
    """Write one file with the tensors of all ``files``, ordered as safetensors does: widest dtype first, then by name.

    The same tensors give the same bytes. Metadata of the files is dropped.
    Raises: nothing of its own: the files are ones that safetensors wrote just now.
    """
    pieces = {name: piece for path in files for name, piece in _pieces(path).items()}
    order = sorted(pieces, key=lambda name: (-_BYTES[pieces[name].entry["dtype"]], name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    place = 0
    for name in order:
        end = place + pieces[name].num_bytes
        header[name] = {**pieces[name].entry, "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with replacing(out) as temporary, temporary.open("wb") as target:
        target.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            interrupt.check()
            _copy(pieces[name], target)


_BYTES = {"F32": 4, "I32": 4, "F16": 2, "BF16": 2, "U8": 1, "I8": 1}


def _pieces(path: Path) -> dict[str, _Piece]:
    with path.open("rb") as file:
        header_bytes = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(header_bytes))
    start = 8 + header_bytes
    return {
        name: _Piece(path, start + entry["data_offsets"][0], entry)
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _copy(piece: _Piece, target: BinaryIO) -> None:
    with piece.file.open("rb") as source:
        source.seek(piece.start)
        left = piece.num_bytes
        while left:
            chunk = source.read(min(left, _CHUNK_BYTES))
            target.write(chunk)
            left -= len(chunk)
