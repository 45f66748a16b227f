"""How does llama.cpp call, order and describe the tensors of Llama and its kin? Pure: names, permutations, metadata.

Shapes: O rows (outputs) of a weight, H heads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import gguf
import numpy as np
from numpy.typing import NDArray

from potstill.core.errors import InputError
from potstill.export.families import decoder_facts

__all__ = ["LlamaFacts", "gguf_name", "llama_facts", "permuted_for_rope"]

FAMILIES: Mapping[str, gguf.MODEL_ARCH] = MappingProxyType(
    {
        "llama": gguf.MODEL_ARCH.LLAMA,
        "mistral": gguf.MODEL_ARCH.LLAMA,
        "qwen2": gguf.MODEL_ARCH.QWEN2,
        "qwen3": gguf.MODEL_ARCH.QWEN3,
    }
)
"""``model_type`` of the families that can be exported: what llama.cpp calls them."""

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class LlamaFacts:
    """What GGUF's ``llama.*`` keys, or those of its kin, say of a model."""

    architecture: gguf.MODEL_ARCH
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
    facts = decoder_facts(config, where)
    windows = [block.window for block in facts.blocks if block.window and block.window < facts.context]
    if windows:
        raise InputError(
            f"looks back {windows[0]} tokens only, which llama.cpp doesn't do in this family",
            where=where,
            next_step="export it to another format, or set max_position_embeddings to that window in config.json",
        )
    return LlamaFacts(
        architecture=FAMILIES[facts.family],
        blocks=len(facts.blocks),
        width=facts.width,
        mlp_width=facts.mlp_width,
        heads=facts.heads,
        kv_heads=facts.kv_heads,
        head_width=facts.head_width,
        context=facts.context,
        vocabulary=facts.vocabulary,
        norm_epsilon=facts.norm_epsilon,
        rope_base=float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))),
    )


def gguf_name(name: str, facts: LlamaFacts) -> str:
    """The name of a tensor in GGUF.

    Raises: InputError: llama.cpp knows no such tensor in this family.
    """
    names = gguf.get_tensor_name_map(facts.architecture, facts.blocks)
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise InputError(f"is a tensor that llama.cpp's {facts.architecture.name} doesn't have", where=name)
    return str(found)


def permuted_for_rope(rows_O: NDArray[T], name: str, facts: LlamaFacts) -> NDArray[T]:
    """Rows of the query and key projections in llama.cpp's order; any other tensor as it is.

    Hugging Face rotates column j of a head with column j + half, llama.cpp's Llama neighbours 2j and 2j + 1, the other
    families as Hugging Face does. Works on weights,
    codes, scales and biases alike, since only whole rows move.

    Shapes: rows_O [O, ...].
    """
    if facts.architecture is not gguf.MODEL_ARCH.LLAMA:
        return rows_O
    if ".q_proj." in name:
        heads = facts.heads
    elif ".k_proj." in name:
        heads = facts.kv_heads
    else:
        return rows_O
    halves = rows_O.reshape(heads, 2, facts.head_width // 2, *rows_O.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows_O.shape)
