"""What is a model made of, and how large would it be? Answered from its config alone, allocating no weight.

Families whose layout is known are counted without torch; others are built on the meta device, some seconds of imports.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypedDict

from potstill.core.durable import read_json
from potstill.model.directory import check_config, locate
from potstill.model.layouts import Layout, Weights, layout_of

__all__ = ["BYTES_PER_BLOCK", "COLUMNS_PER_BLOCK", "Inspection", "inspect_config"]

COLUMNS_PER_BLOCK = 32
"""Columns that share one scale in int8 (GGUF Q8_0) and int4 (GGUF Q4_0)."""

BYTES_PER_BLOCK: Mapping[str, int] = MappingProxyType({"int8": 34, "int4": 18})
"""32 codes and one float16 scale."""


class Inspection(TypedDict):
    """``parts``: parameters by part, tied weights once, under embeddings; ``bytes``: of the weights, by dtype."""

    model_type: str
    architecture: str
    blocks: int
    width: int
    vocabulary: int
    tied: bool
    parameters: int
    parts: dict[str, int]
    bytes: dict[str, int]


def inspect_config(model: str | Path) -> Inspection:
    """Inspect the model of a directory, a ``config.json``, or a hub id, of which only the config is fetched.

    Raises: InputError: no config, one of an unknown or no causal architecture, or one that asks for its own code.
        RemoteError: the hub can't be reached. ResourceError: the architecture needs a package that isn't installed.
    """
    path = Path(model)
    file = path if path.is_file() else locate(model, only=("config.json",)) / "config.json"
    check_config(file)
    config = read_json(file)
    layout = layout_of(config)
    if layout is not None:
        return _inspection(str(config["model_type"]), layout)
    from potstill.model.inspect_built import inspect_unbuilt  # noqa: PLC0415 - torch, for unknown families only

    return inspect_unbuilt(file)


def _inspection(model_type: str, layout: Layout) -> Inspection:
    parts = dict.fromkeys(("embeddings", "attention", "mlp", "norms", "head", "other"), 0)
    for weights in layout.weights:
        parts[weights.part] += weights.parameters
    parameters = sum(parts.values())
    sizes = {"float32": 4 * parameters, "float16": 2 * parameters}
    for scheme, block_bytes in BYTES_PER_BLOCK.items():
        sizes[scheme] = sum(_quantized_bytes(weights, block_bytes) for weights in layout.weights)
    return Inspection(
        model_type=model_type,
        architecture=layout.architecture,
        blocks=layout.blocks,
        width=layout.width,
        vocabulary=layout.vocabulary,
        tied=parts["head"] == 0,
        parameters=parameters,
        parts=parts,
        bytes=sizes,
    )


def _quantized_bytes(weights: Weights, block_bytes: int) -> int:
    """Bytes of matrices whose rows divide into blocks; anything else stays in float32."""
    if weights.columns is None or weights.columns % COLUMNS_PER_BLOCK:
        return 4 * weights.parameters
    return weights.parameters // COLUMNS_PER_BLOCK * block_bytes
