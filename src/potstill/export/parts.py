"""Which numbers stand at each part of a decoder? The tensors of a model directory by role, every matrix [O, I].

Shapes: O rows (outputs) of a weight, I columns (inputs).
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.core.errors import InputError
from potstill.core.trace import Trace
from potstill.export.families import DecoderFacts, decoder_facts
from potstill.model.weights import CodedTensor, Weights

__all__ = ["COMPUTED", "Matrix", "Parts", "qkv_rows", "require_codes", "tell_activations"]

Matrix = Tensor | CodedTensor
"""Floats [O, I] in the dtype of the file, or codes and scales."""

COMPUTED = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
"""Ends of names that old checkpoints carry though the model computes them: masks and frequencies."""


class Parts:
    """A model directory's tensors by role, read one at a time.

    Raises: InputError: a family that isn't exported, or a tensor that is missing.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.facts: DecoderFacts = decoder_facts(weights.config, str(weights.directory))
        self._read: set[str] = set()
        self._names = {name for name in weights.names if not name.endswith(COMPUTED)}
        if self.facts.tied:
            self._names.discard(self.name("head"))

    def has(self, role: str, block: int | None = None) -> bool:
        """Whether this family has such a part."""
        return self.facts.name(role, block) is not None

    def name(self, role: str, block: int | None = None) -> str:
        """The name of the part's weight, by Hugging Face."""
        return f"{self.facts.name(role, block)}.weight"

    @property
    def tied(self) -> bool:
        """Whether the head is the embeddings' own tensor."""
        return self.facts.tied

    def matrix(self, role: str, block: int | None = None) -> Matrix:
        """A weight; rows of a fused one stand as all of q, then k, then v, whatever their order in the file."""
        name = self._taken(self.name(role, block))
        require_codes(self.weights, name)
        stored: Matrix = self.weights.read_coded(name) if self.weights.is_coded(name) else self.weights.read(name)
        if self.facts.layout.columns_first and block is not None and isinstance(stored, Tensor):
            stored = stored.T.contiguous()
        if role == "qkv" and self.facts.layout.qkv_by_head:
            order_O = qkv_rows(self.facts)
            if isinstance(stored, Tensor):
                return stored[torch.from_numpy(order_O)]
            return replace(stored, codes_OI=stored.codes_OI[order_O], scales_OG=stored.scales_OG[order_O])
        return stored

    def bias(self, role: str, block: int | None = None) -> NDArray[np.float32] | None:
        """A bias in float32; None where the model has none."""
        name = f"{self.facts.name(role, block)}.bias"
        if name not in self._names:
            return None
        bias_O = self._vector(name)
        return bias_O[qkv_rows(self.facts)] if role == "qkv" and self.facts.layout.qkv_by_head else bias_O

    def norm(self, role: str, block: int | None = None) -> NDArray[np.float32]:
        """The factor of a norm in float32, the family's offset added."""
        return self._vector(self.name(role, block)) + np.float32(self.facts.layout.norm_offset)

    def require_all_read(self) -> None:
        """Refuse a model with tensors that the family's table doesn't know.

        Raises: InputError: naming the first one.
        """
        left = sorted(self._names - self._read)
        if left:
            what = f"is a tensor that potstill's table of {self.facts.family} doesn't know ({len(left)} in all)"
            raise InputError(what, where=f"{self.weights.directory}: {left[0]}")

    def _vector(self, name: str) -> NDArray[np.float32]:
        vector: NDArray[np.float32] = self.weights.read(self._taken(name)).float().contiguous().numpy()
        return vector

    def _taken(self, name: str) -> str:
        if name not in self._names:
            raise InputError(f"{name} is missing", where=str(self.weights.directory))
        self._read.add(name)
        return name


def qkv_rows(facts: DecoderFacts) -> NDArray[np.int64]:
    """Where each row of q, then k, then v stands in a weight that keeps the three together head by head.

    Returns: int64 [O].
    """
    rows = np.arange(3 * facts.heads * facts.head_width)
    return rows.reshape(facts.heads, 3, facts.head_width).swapaxes(0, 1).ravel()


def tell_activations(weights: Weights, trace: Trace) -> None:
    """Record that a runtime rounds activations 32 columns at a time where a W8A8 scheme wants a scale per token."""
    if weights.integer_products:
        trace.fallback("activations are rounded to int8 with a scale per 32 columns, finer than one per token")


def require_codes(weights: Weights, name: str) -> None:
    """Refuse a weight that only GGUF can hold as it was chosen.

    Raises: InputError: it stands as blocks of a k-quant grid.
    """
    grid = weights.blocks_grid(name)
    if grid is not None:
        raise InputError(
            f"is on llama.cpp's grid {grid}, which only GGUF files hold",
            where=f"{weights.directory}: {name}",
            next_step="export it as gguf alone, or take an int4 or int8 scheme",
        )
