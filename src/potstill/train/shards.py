"""Named tensors in one safetensors file, or split by rows over several: written by all processes, read by any number.

FSDP2 gives each process a run of a parameter's rows, in the processes' order. A file holds the runs of one process, so
a tensor is what the files hold under its name, one below the other, and any other run of its rows can be read from it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from potstill.core.durable import replacing, sha256_of_file
from potstill.core.errors import InputError
from potstill.core.world import World

__all__ = ["Entries", "SplitTensors", "opened", "own_rows", "put", "verify_files", "write_files"]

Entries = Sequence[Mapping[str, str]]
"""The files of a split in order, each as ``{"file": its name, "sha256": its hash}``."""


class SplitTensors:
    """Tensors that are open for reading, from one or several files."""

    def __init__(self, files: Sequence[Any]) -> None:
        self._files = files
        self._names = [set(file.keys()) for file in files]

    def rows(self, name: str, first: int = 0, end: int | None = None) -> Tensor:
        """The rows from ``first`` up to ``end`` of the tensor of this name; all of them unless told.

        Raises: InputError: no file holds it.
        """
        pieces: list[Tensor] = []
        before = 0
        for file, names in zip(self._files, self._names, strict=True):
            if name in names:
                held = file.get_slice(name)
                num_rows = held.get_shape()[0]
                start, stop = max(first - before, 0), num_rows if end is None else min(end - before, num_rows)
                if start < stop or not pieces:
                    pieces.append(held[start : max(start, stop)] if start < num_rows else held[:0])
                before += num_rows
        if not pieces:
            raise InputError(f"holds no tensor {name}", next_step="delete the stage's directory and run again")
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


@contextmanager
def opened(files: Sequence[Path]) -> Iterator[SplitTensors]:
    """Open the files of a split.

    Raises: InputError: one is missing or damaged.
    """
    with ExitStack() as stack:
        handles = []
        for file in files:
            try:
                handles.append(stack.enter_context(safe_open(file, framework="pt")))
            except (OSError, SafetensorError) as error:
                raise InputError(f"can't be read: {error}", where=str(file)) from error
        yield SplitTensors(handles)


def own_rows(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: its run of rows if that is sharded, else all."""
    local: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.detach().contiguous()


def put(tensors: SplitTensors, name: str, like: nn.Parameter) -> Tensor:
    """The stored tensor on the device of ``like``, and sharded if and as that is."""
    if not isinstance(like, DTensor):
        return tensors.rows(name).to(like.device)
    mesh = like.device_mesh
    rows_each = -(-like.shape[0] // mesh.size())
    first = min(mesh.get_local_rank() * rows_each, like.shape[0])
    local = tensors.rows(name, first, min(first + rows_each, like.shape[0])).to(like.device)
    stored: Tensor = DTensor.from_local(
        local, mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return stored


def write_files(tensors: dict[str, Tensor], directory: Path, stem: str, world: World, *, is_split: bool) -> Entries:
    """Write ``stem.safetensors`` by the leading process, or the parts of a split by all; return what the index lists.

    Every process calls this, and none goes on before all are durable.
    """
    name = f"{stem}-{world.rank + 1:05d}-of-{world.size:05d}.safetensors" if is_split else f"{stem}.safetensors"
    digest = ""
    if is_split or world.leads:
        with replacing(directory / name) as temporary:
            save_file(tensors, temporary)
        digest = sha256_of_file(directory / name)
    digests = world.gather(digest)
    if not is_split:
        return [{"file": name, "sha256": digests[0]}]
    names = [f"{stem}-{rank + 1:05d}-of-{world.size:05d}.safetensors" for rank in range(world.size)]
    return [{"file": file, "sha256": digest} for file, digest in zip(names, digests, strict=True)]


def verify_files(entries: Entries, directory: Path, world: World) -> list[Path]:
    """The files of an index, after the processes together have read and checked every byte.

    Raises: InputError: one is missing or damaged.
    """
    files = [directory / entry["file"] for entry in entries]
    for file, entry in list(zip(files, entries, strict=True))[world.rank :: world.size]:
        if not file.exists() or sha256_of_file(file) != entry["sha256"]:
            raise InputError("is damaged", where=str(file), next_step="delete the stage's directory and run again")
    world.gather()
    return files
