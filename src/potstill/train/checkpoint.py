"""Checkpoints: everything the loop needs to go on as if nothing had happened.

``state-N.safetensors`` holds weights and optimiser moments, ``checkpoint.json`` points to it and is replaced in one
step, so a kill at any moment leaves the old checkpoint or the new one. ``best.safetensors`` holds the weights of the
best epoch so far.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from potstill.core.durable import read_json, replacing, sha256_of_file, write_json
from potstill.core.errors import InputError

__all__ = ["Checkpoint", "load_weights", "save_weights"]

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Checkpoint:
    """The checkpoint in a directory.

    Writes alternate between two files, so that the one pointed to is never the one being written.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._index = directory / "checkpoint.json"
        self._best = directory / "best.safetensors"

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Mapping[str, Any]) -> None:
        """Write weights, optimiser moments and ``progress`` (JSON)."""
        self._directory.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            tensors[f"weight.{name}"] = parameter.detach().contiguous()
            for moment in _MOMENTS:
                if moment in optimizer.state[parameter]:
                    tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment].contiguous()
        file = self._directory / f"state-{progress['step'] % 2}-{progress['step']}.safetensors"
        _save(tensors, file)
        write_json(self._index, {**progress, "file": file.name, "sha256": sha256_of_file(file)})
        for old in self._directory.glob("state-*.safetensors"):
            if old != file:
                old.unlink()

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Put the saved weights and moments back and return the saved progress; None if there is no checkpoint.

        Raises: InputError: the checkpoint is damaged.
        """
        if not self._index.exists():
            return None
        progress: dict[str, Any] = read_json(self._index)
        file = self._directory / progress["file"]
        if not file.exists() or sha256_of_file(file) != progress["sha256"]:
            raise InputError("is damaged", where=str(file), next_step="delete the stage's directory and run again")
        tensors = load_file(file)
        for name, parameter in model.named_parameters():
            with torch.no_grad():
                parameter.copy_(tensors[f"weight.{name}"])
            if progress["step"] > 0:
                moments = {moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in _MOMENTS}
                step = torch.tensor(float(progress["step"]), device=parameter.device)
                optimizer.state[parameter] = {"step": step, **moments}
        return progress

    def save_best(self, model: nn.Module) -> None:
        """Keep the weights as they are now as the best so far."""
        self._directory.mkdir(parents=True, exist_ok=True)
        save_weights(model, self._best)

    def load_best(self, model: nn.Module) -> None:
        """Put the best weights back."""
        load_weights(model, self._best)


def save_weights(model: nn.Module, file: Path) -> None:
    """Write a model's parameters, durably; a tied one once."""
    _save({name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}, file)


def load_weights(model: nn.Module, file: Path) -> None:
    """Read what ``save_weights`` wrote.

    Raises: InputError: the file is missing or damaged.
    """
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"can't be read: {error}", where=str(file)) from error
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name])


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    with replacing(file) as temporary:
        save_file(tensors, temporary)
