"""Write one safetensors file without having its tensors in memory together: from other files, or one by one.

A file is 8 bytes of length, a JSON header, and the tensors' bytes one after another.
"""

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from potstill.core import interrupt
from potstill.core.durable import replacing
from potstill.core.errors import BugError

__all__ = ["PlannedTensor", "concatenate", "write_one_by_one"]

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
    order = _order({name: piece.entry["dtype"] for name, piece in pieces.items()})
    with replacing(out) as temporary, temporary.open("wb") as target:
        target.write(_header({name: pieces[name].entry for name in order}, metadata))
        for name in order:
            interrupt.check()
            _copy(pieces[name], target)


@dataclass(frozen=True)
class PlannedTensor:
    """What the header says of a tensor, and how to get it when its turn comes."""

    dtype: torch.dtype
    shape: Sequence[int]
    read: Callable[[], Tensor]

    @property
    def entry(self) -> dict[str, Any]:
        """Its entry of a header, as if it were alone."""
        num_bytes = torch.Size(self.shape).numel() * self.dtype.itemsize
        return {"dtype": _NAMES[self.dtype], "shape": list(self.shape), "data_offsets": [0, num_bytes]}


def write_one_by_one(planned: Mapping[str, PlannedTensor], out: Path, metadata: Mapping[str, str]) -> None:
    """Write one file whose tensors are read one after another, in the order that ``concatenate`` has.

    Raises: BugError: a tensor isn't what was planned.
    """
    order = _order({name: _NAMES[one.dtype] for name, one in planned.items()})
    entries = {name: planned[name].entry for name in order}
    with replacing(out) as temporary, temporary.open("wb") as target:
        target.write(_header(entries, metadata))
        for name in order:
            interrupt.check()
            tensor = planned[name].read()
            if tensor.dtype != planned[name].dtype or tuple(tensor.shape) != tuple(planned[name].shape):
                raise BugError(f"is {tensor.dtype} {tuple(tensor.shape)}, not as planned", where=name)
            target.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "U8": 1, "I8": 1, "BOOL": 1}
_NAMES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.bool: "BOOL",
}


def _order(dtypes: Mapping[str, str]) -> list[str]:
    return sorted(dtypes, key=lambda name: (-_BYTES[dtypes[name]], name))


def _header(entries: Mapping[str, Mapping[str, Any]], metadata: Mapping[str, str]) -> bytes:
    """The length and the header of a file whose tensors stand in the order of ``entries``, wherever they stood."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    place = 0
    for name, entry in entries.items():
        begin, end = entry["data_offsets"]
        header[name] = {**entry, "data_offsets": [place, place + end - begin]}
        place += end - begin
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


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
