"""Where can a factor per column move out of linears into what comes before them, without changing the model? Exactly.

A linear whose column j is multiplied by s gives the same outputs if its input j is divided by s. Inputs come from a
norm, whose weight (and bias) take the division, or from another linear, whose row j does: the values that attention
mixes, or the half of a gated MLP that isn't bent.

Shapes: O rows (outputs) of a weight, I columns (inputs).
"""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from torch import Tensor

__all__ = ["Fold", "apply_fold", "folds_of"]


@dataclass(frozen=True)
class Fold:
    """``readers`` share the input that ``source`` makes; paths are from the block.

    ``kind``: a norm that multiplies by its weight, one that multiplies by 1 + weight, or a linear's rows.
    """

    source: str
    readers: tuple[str, ...]
    kind: Literal["norm", "norm_plus_one", "rows"] = "norm"


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATED = ("mlp.gate_proj", "mlp.up_proj")
_VALUES = Fold("self_attn.v_proj", ("self_attn.o_proj",), "rows")
_UP = Fold("mlp.up_proj", ("mlp.down_proj",), "rows")
_LLAMA = (
    Fold("input_layernorm", _QKV),
    _VALUES,
    Fold("post_attention_layernorm", _GATED),
    _UP,
)

FOLDS: Mapping[str, tuple[Fold, ...]] = MappingProxyType(
    {
        "gemma3_text": (
            Fold("input_layernorm", _QKV, "norm_plus_one"),
            _VALUES,
            Fold("pre_feedforward_layernorm", _GATED, "norm_plus_one"),
            _UP,
        ),
        "gpt2": (Fold("ln_1", ("attn.c_attn",)), Fold("ln_2", ("mlp.c_fc",))),
        "gpt_neox": (
            Fold("input_layernorm", ("attention.query_key_value",)),
            Fold("post_attention_layernorm", ("mlp.dense_h_to_4h",)),
        ),
        "granite": _LLAMA,
        "llama": _LLAMA,
        "mistral": _LLAMA,
        "phi3": (
            Fold("input_layernorm", ("self_attn.qkv_proj",)),
            Fold("post_attention_layernorm", ("mlp.gate_up_proj",)),
        ),
        "qwen2": _LLAMA,
        "qwen3": _LLAMA,
        "smollm3": _LLAMA,
    }
)
"""``model_type`` → folds of a block, in an order in which each may be done after the one before."""


def folds_of(model_type: str, columns_of: Mapping[str, int], rows_of: Mapping[str, int]) -> list[Fold]:
    """The folds that this model has; heads that share values (grouped-query attention) can't take theirs.

    ``columns_of`` and ``rows_of`` map a linear's path in the block to I and O. Empty for a family without a line.
    """
    return [
        fold
        for fold in FOLDS.get(model_type, ())
        if fold.kind != "rows" or rows_of[fold.source] == columns_of[fold.readers[0]]
    ]


def apply_fold(
    fold: Fold, factors_I: Tensor, matrices: Mapping[str, Tensor], vectors: MutableMapping[str, Tensor]
) -> None:
    """Multiply the readers' columns by ``factors_I`` and divide the source by them, in place.

    ``matrices`` maps a linear's path to its weight [O, I]; ``vectors`` maps "PATH.weight" of a norm and "PATH.bias" to
    theirs.
    """
    for reader in fold.readers:
        matrices[reader].mul_(factors_I)
    bias = vectors.get(f"{fold.source}.bias")
    if bias is not None:
        bias.div_(factors_I)
    if fold.kind == "rows":
        matrices[fold.source].div_(factors_I[:, None])
    elif fold.kind == "norm":
        vectors[f"{fold.source}.weight"].div_(factors_I)
    else:
        vectors[f"{fold.source}.weight"].add_(1).div_(factors_I).sub_(1)
