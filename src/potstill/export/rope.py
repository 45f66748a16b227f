"""By how much is each pair of columns turned from one position to the next? Rotary positions of every family.

Shapes: J rotated pairs of columns of a head.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.core.errors import InputError

__all__ = ["Rope", "rope_of"]


@dataclass(frozen=True)
class Rope:
    """Radians per position of each pair; columns j and j + J of a head make pair j, those after 2 J are left alone."""

    frequencies_J: tuple[float, ...]
    kind: str
    base: float
    factor: float

    @property
    def columns(self) -> int:
        """How many columns of a head are rotated."""
        return 2 * len(self.frequencies_J)


def rope_of(config: Mapping[str, Any], layer_type: str | None, head_width: int, where: str) -> Rope:
    """The rotation of a block, as transformers computes it in float32.

    ``layer_type`` picks among several where the configuration has one for each kind of block.

    Raises: InputError: a way of stretching that isn't default, linear or llama3.
    """
    parameters = _parameters(config, layer_type)
    kind = str(parameters.get("rope_type", parameters.get("type", "default")))
    base = float(parameters.get("rope_theta", config.get("rope_theta", config.get("rotary_emb_base", 10_000.0))))
    share = float(parameters.get("partial_rotary_factor", config.get("partial_rotary_factor", _share(config))))
    columns = int(head_width * share)
    exponents_J = np.arange(0, columns, 2, dtype=np.float32) / np.float32(columns)
    frequencies_J = (1.0 / (base**exponents_J)).astype(np.float32)
    factor = float(parameters.get("factor", 1.0))
    if kind == "linear":
        frequencies_J = frequencies_J / np.float32(factor)
    elif kind == "llama3":
        frequencies_J = _llama3(frequencies_J, parameters, factor)
    elif kind != "default":
        raise InputError(
            f"positions stretched by {kind!r} aren't carried",
            where=where,
            next_step="carried are the kinds default, linear and llama3",
        )
    return Rope(tuple(frequencies_J.astype(np.float32).tolist()), kind, base, factor)


def _parameters(config: Mapping[str, Any], layer_type: str | None) -> Mapping[str, Any]:
    """The rotation's own part of a configuration, in the spelling of transformers 5 or before."""
    found: Mapping[str, Any] = config.get("rope_parameters") or config.get("rope_scaling") or {}
    inner = found.get(layer_type or "")
    if isinstance(inner, Mapping):
        return inner
    if layer_type == "sliding_attention" and "rope_local_base_freq" in config:
        return {"rope_theta": config["rope_local_base_freq"]}
    return found


def _share(config: Mapping[str, Any]) -> float:
    return float(config.get("rotary_pct", 0.25)) if config["model_type"] == "gpt_neox" else 1.0


def _llama3(frequencies_J: NDArray[np.float32], parameters: Mapping[str, Any], factor: float) -> NDArray[np.float32]:
    """Slow pairs are slowed by ``factor``, fast ones kept, those between blended.

    Source: transformers, ``_compute_llama3_parameters``.
    """
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    context = float(parameters["original_max_position_embeddings"])
    wavelengths_J = 2 * math.pi / frequencies_J
    smooth_J = (context / wavelengths_J - low) / (high - low)
    blended_J = (1 - smooth_J) * frequencies_J / factor + smooth_J * frequencies_J
    slowed_J = np.where(wavelengths_J > context / low, frequencies_J / factor, frequencies_J)
    between_J = (wavelengths_J >= context / high) & (wavelengths_J <= context / low)
    return np.where(between_J, blended_J, slowed_J).astype(np.float32)
