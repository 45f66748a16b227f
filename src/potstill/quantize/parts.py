"""The work so far, part by part: a killed quantization goes on at the part it was at, and ends in the same bytes.

A *part* is a block of the model, or a tensor outside of the blocks. Its tensors are written to a file of their own as
soon as they are chosen, so that no more than a part is in memory; at the end the files are put together.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from potstill.core.durable import canonical_json, read_json, replacing, write_json
from potstill.model.tensor_file import concatenate

__all__ = ["Part", "WorkSoFar", "parts_of"]

_FOLDER = "parts"
_BLOCK = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")


@dataclass(frozen=True)
class Part:
    """Tensors that are quantized together; ``block`` is None outside of the blocks."""

    name: str
    tensors: Sequence[str]
    block: int | None = None


def parts_of(names: Sequence[str]) -> list[Part]:
    """The parts of a model: tensors outside of the blocks by name, then the blocks from first to last."""
    blocks: dict[int, list[str]] = {}
    outside: list[Part] = []
    for name in sorted(names):
        found = _BLOCK.search(name)
        if found:
            blocks.setdefault(int(found[1]), []).append(name)
        else:
            outside.append(Part(name, [name]))
    return outside + [Part(f"block-{index:05d}", blocks[index], index) for index in sorted(blocks)]


class WorkSoFar:
    """The finished parts of one quantization; those of another (``made_from`` differs) are thrown away."""

    def __init__(self, out: Path, made_from: Mapping[str, Any]) -> None:
        self._folder = out / _FOLDER
        marker = self._folder / "made-from.json"
        made_from = json.loads(canonical_json(made_from))
        if not marker.is_file() or read_json(marker) != made_from:
            if self._folder.exists():
                shutil.rmtree(self._folder)
            self._folder.mkdir(parents=True)
            write_json(marker, made_from)
        for stale in self._folder.glob(".*.partial"):
            stale.unlink()

    @property
    def folder(self) -> Path:
        """Where the parts lie, for what else is needed to go on."""
        return self._folder

    def facts(self, part: Part) -> dict[str, Any] | None:
        """What was told of a finished part; None for one that is still to do."""
        path = self._path(part)
        if not path.is_file():
            return None
        with safe_open(path, framework="pt") as file:
            facts: dict[str, Any] = json.loads(file.metadata()["facts"])
        return facts

    def finish(self, part: Part, entries: Mapping[str, Tensor], facts: Mapping[str, Any]) -> dict[str, Any]:
        """Write a part with what there is to tell of it, durably and in one step; returns it as read again."""
        text = canonical_json(facts)
        with replacing(self._path(part)) as temporary:
            save_file(dict(entries), temporary, metadata={"facts": text})
        told: dict[str, Any] = json.loads(text)
        return told

    def put_together(self, parts: Sequence[Part], out: Path, metadata: Mapping[str, str]) -> None:
        """Write the tensors of all parts as one file."""
        concatenate([self._path(part) for part in parts], out, metadata)

    def remove(self) -> None:
        """Delete the parts; they are in the one file now."""
        shutil.rmtree(self._folder)

    def _path(self, part: Part) -> Path:
        return self._folder / f"{part.name}.safetensors"
