"""How does llama.cpp call, order and describe the tensors of a Llama? Pure: names, permutations, metadata.

Shapes: O rows (outputs) of a weight, H heads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import gguf
import numpy as np
from numpy.typing import NDArray

from potstill.core.errors import InputError

__all__ = ["LlamaFacts", "gguf_name", "llama_facts", "permuted_for_rope"]

FAMILIES = ("llama",)
"""``model_type`` of the families that can be exported."""

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class LlamaFacts:
    """What GGUF's ``llama.*`` keys say of a model."""

    blocks: int
    width: int
    mlp_width: int
    heads: int
    kv_heads: int
    head_width: int
    context: int
    vocabulary: int
    norm_epsilon: float
    rope_base: float


def llama_facts(config: Mapping[str, Any], where: str) -> LlamaFacts:
    """Read a Hugging Face configuration.

    Raises: InputError: another family, or a variation of Llama that the file couldn't say.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise InputError(
            f"models of the family {family!r} can't be exported to GGUF",
            where=where,
            next_step=f"supported: {', '.join(FAMILIES)}",
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default":
        raise InputError(f"RoPE scaled by {rope_type!r} can't be exported to GGUF yet", where=where)
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise InputError(f"llama.cpp's Llama has silu in its MLP, this model {activation!r}", where=where)
    heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
    return LlamaFacts(
        blocks=int(config["num_hidden_layers"]),
        width=width,
        mlp_width=int(config["intermediate_size"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_width=int(config.get("head_dim") or width // heads),
        context=int(config.get("max_position_embeddings", 2048)),
        vocabulary=int(config["vocab_size"]),
        norm_epsilon=float(config.get("rms_norm_eps", 1e-6)),
        rope_base=float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))),
    )


def gguf_name(name: str, facts: LlamaFacts) -> str:
    """The name of a tensor in GGUF.

    Raises: InputError: llama.cpp's Llama has no such tensor.
    """
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, facts.blocks)
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise InputError("is a tensor that llama.cpp's Llama doesn't have", where=name)
    return str(found)


def permuted_for_rope(rows_O: NDArray[T], name: str, facts: LlamaFacts) -> NDArray[T]:
    """Rows of the query and key projections in llama.cpp's order; any other tensor as it is.

    Hugging Face rotates column j of a head with column j + half, llama.cpp neighbours 2j and 2j + 1. Works on weights,
    codes, scales and biases alike, since only whole rows move.

    Shapes: rows_O [O, ...].
    """
    if ".q_proj." in name:
        heads = facts.heads
    elif ".k_proj." in name:
        heads = facts.kv_heads
    else:
        return rows_O
    halves = rows_O.reshape(heads, 2, facts.head_width // 2, *rows_O.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows_O.shape)
