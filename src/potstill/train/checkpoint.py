"""Checkpoints: everything the loop needs to go on as if nothing had happened.

``state-N.safetensors`` holds weights and optimiser moments, ``checkpoint.json`` points to it and is replaced in one
step, so a kill at any moment leaves the old checkpoint or the new one. ``best.safetensors`` holds the weights of the
best epoch so far.

Of a model that is sharded each process writes what it holds, ``state-N-00001-of-00002.safetensors`` and so on; then
``checkpoint.json`` lists the files, and ``best.json`` those of the best epoch. Any number of processes reads either.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from potstill.core.durable import read_json, write_json
from potstill.core.errors import InputError
from potstill.core.world import current
from potstill.train.shards import Entries, opened, own_rows, put, verify_files, write_files

__all__ = ["Checkpoint"]

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Checkpoint:
    """The checkpoint in a directory that all processes of a run see; they call every method together.

    Writes alternate between two files, so that the one pointed to is never the one being written.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._index = directory / "checkpoint.json"
        self._best = directory / "best.safetensors"
        self._best_index = directory / "best.json"
        self._world = current()

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Mapping[str, Any]) -> None:
        """Write weights, optimiser moments and ``progress`` (JSON)."""
        self._directory.mkdir(parents=True, exist_ok=True)
        tensors = _weights(model, "weight.")
        for name, parameter in model.named_parameters():
            for moment in _MOMENTS:
                if moment in optimizer.state[parameter]:
                    tensors[f"{moment}.{name}"] = own_rows(optimizer.state[parameter][moment])
        stem = f"state-{progress['step'] % 2}-{progress['step']}"
        entries = write_files(tensors, self._directory, stem, self._world, is_split=_is_sharded(model))
        if self._world.leads:
            write_json(self._index, {**progress, **(entries[0] if len(entries) == 1 else {"files": entries})})
            self._keep_only("state-*.safetensors", entries)
        self._world.gather()

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Put the saved weights and moments back and return the saved progress; None if there is no checkpoint.

        Raises: InputError: the checkpoint is damaged, or the processes see different ones.
        """
        progress: dict[str, Any] | None = read_json(self._index) if self._index.exists() else None
        seen = self._world.gather(str(progress and progress["step"]))
        if len(set(seen)) > 1:
            raise InputError(
                f"the processes see different checkpoints here, of steps {', '.join(seen)}",
                where=str(self._directory),
                next_step="give an --out on a file system that all machines share",
            )
        if progress is None:
            return None
        entries = progress.get("files", [progress])
        with opened(verify_files(entries, self._directory, self._world)) as tensors, torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(put(tensors, f"weight.{name}", parameter))
                if progress["step"] > 0:
                    moments = {moment: put(tensors, f"{moment}.{name}", parameter) for moment in _MOMENTS}
                    step = torch.tensor(float(progress["step"]), device=parameter.device)
                    optimizer.state[parameter] = {"step": step, **moments}
        return progress

    def save_best(self, model: nn.Module) -> None:
        """Keep the weights as they are now as the best so far."""
        self._directory.mkdir(parents=True, exist_ok=True)
        is_split = _is_sharded(model)
        stem = f"best-{self._other_generation()}" if is_split else "best"
        entries = write_files(_weights(model), self._directory, stem, self._world, is_split=is_split)
        if self._world.leads:
            if is_split:
                write_json(self._best_index, {"files": entries})
            else:
                self._best_index.unlink(missing_ok=True)
            self._keep_only("best*.safetensors", entries)
        self._world.gather()

    def load_best(self, model: nn.Module) -> None:
        """Put the best weights back into a whole model.

        Raises: InputError: a file is missing or damaged.
        """
        files = [self._best]
        if self._best_index.exists():
            files = verify_files(read_json(self._best_index)["files"], self._directory, self._world)
        with opened(files) as tensors, torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(tensors.rows(name))

    def _other_generation(self) -> int:
        """0 or 1, whichever isn't in the names of the best files that are there."""
        if not self._best_index.exists():
            return 0
        return int(not any(entry["file"].startswith("best-1-") for entry in read_json(self._best_index)["files"]))

    def _keep_only(self, pattern: str, entries: Entries) -> None:
        kept = {entry["file"] for entry in entries}
        for old in self._directory.glob(pattern):
            if old.name not in kept:
                old.unlink()


def _weights(model: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """What this process holds of a model's parameters; of a tied one, once."""
    return {f"{prefix}{name}": own_rows(parameter) for name, parameter in model.named_parameters()}


def _is_sharded(model: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())
