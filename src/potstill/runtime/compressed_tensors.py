"""What does PyTorch compute for a compressed-tensors directory? The package of that name decompresses it."""

import contextlib
import io
from pathlib import Path

import numpy as np
import torch

from potstill.core.durable import read_json
from potstill.core.extras import needing
from potstill.model.store import load_model
from potstill.model.weights import Weights
from potstill.runtime.engine import EngineFacts
from potstill.runtime.pytorch import PytorchEngine

__all__ = ["open_compressed_tensors"]

_BESIDE = (".weight_scale", ".weight_shape")


def open_compressed_tensors(directory: Path, *, threads: int) -> PytorchEngine:
    """Open a directory whose ``quantization_config`` names compressed-tensors, or an unquantized one beside such.

    Weights are decompressed to float32; activations are rounded where the configuration says so.

    Raises: InputError: the directory holds no such model. ResourceError: compressed-tensors isn't installed.
    """
    weights = Weights(directory)
    quantization = read_json(directory / "config.json").get("quantization_config")
    if quantization:
        with needing("compressed-tensors", "compressed-tensors"):
            import compressed_tensors  # noqa: F401, PLC0415 - an extra that transformers looks for
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars that nothing else turns off
        model = load_model(directory)
        with torch.inference_mode():
            model(input_ids=torch.zeros(1, 1, dtype=torch.int64))  # the first call decompresses
    facts = EngineFacts(
        name=directory.stem,
        format="compressed-tensors",
        engine="pytorch",
        dtype=_dtype(quantization, weights),
        parameters=_num_parameters(weights),
        file_bytes=weights.num_bytes(),
        threads=threads,
        vocabulary=int(model.config.vocab_size),
    )
    return PytorchEngine.of(model, facts)


def _dtype(quantization: object, weights: Weights) -> str:
    if not isinstance(quantization, dict):
        return str(weights.read(weights.names[0]).dtype).removeprefix("torch.")
    return f"int{quantization['config_groups']['group_0']['weights']['num_bits']}"


def _num_parameters(weights: Weights) -> int:
    """How many numbers the weights stand for, packed or not."""
    total = 0
    for name in weights.names:
        if name.endswith(".weight_packed"):
            total += int(weights.read(name.replace(".weight_packed", ".weight_shape")).prod())
        elif not name.endswith(_BESIDE):
            total += int(np.prod(weights.shape(name)))
    return total
