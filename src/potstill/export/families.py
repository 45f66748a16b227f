"""What does a decoder of each family compute, and where do its tensors stand? One table that every exporter reads.

A line of ``FAMILIES`` says what a family's ``config.json`` doesn't: names of tensors, which are fused, where norms
stand, what the residual runs through. ``decoder_facts`` puts line and config together; what neither says is
refused, for a guess about how logits come about would be a silent error.

Shapes: J rotated pairs of columns of a head.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from potstill.core.errors import InputError
from potstill.export.rope import Rope, rope_of

__all__ = ["FAMILIES", "Activation", "BlockFacts", "DecoderFacts", "Layout", "decoder_facts"]

Activation = Literal["silu", "gelu", "gelu_tanh"]

_ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        "silu": "silu",
        "swish": "silu",
        "gelu": "gelu",
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu_fast": "gelu_tanh",
    }
)


@dataclass(frozen=True)
class Layout:
    """One family: names of its tensors by role, and the ways in which its blocks differ from a Llama's.

    ``top`` holds embeddings, positions, final_norm and head; ``block`` the roles of a block, under ``blocks`` and its
    number. A role that isn't there doesn't exist in the family. Fused weights stand under ``qkv`` and ``gate_up``.
    """

    blocks: str
    top: Mapping[str, str]
    block: Mapping[str, str]
    norm: Literal["rms", "layer"] = "rms"
    norm_offset: float = 0.0
    columns_first: bool = False
    qkv_by_head: bool = False
    parallel: bool = False
    scaled_embeddings: bool = False


@dataclass(frozen=True)
class BlockFacts:
    """What may change from block to block: positions, how far back is seen, and what scores are multiplied by."""

    rope: Rope | None
    window: int | None
    score_scale: float


@dataclass(frozen=True)
class DecoderFacts:
    """Everything that an exporter must know of a model besides its weights."""

    family: str
    layout: Layout
    blocks: tuple[BlockFacts, ...]
    width: int
    mlp_width: int
    heads: int
    kv_heads: int
    head_width: int
    context: int
    vocabulary: int
    norm_epsilon: float
    activation: Activation
    parallel: bool
    embedding_scale: float
    logit_cap: float | None
    tied: bool

    def name(self, role: str, block: int | None = None) -> str | None:
        """The tensor's name without ``.weight``; None where the family has no such part."""
        if block is None:
            return self.layout.top.get(role)
        inner = self.layout.block.get(role)
        return None if inner is None else f"{self.layout.blocks}.{block}.{inner}"

    def roles(self) -> dict[str, str]:
        """The role of each part by its name: ``name`` the other way round, for all blocks."""
        found = {name: role for role, name in self.layout.top.items()}
        for block in range(len(self.blocks)):
            found |= {f"{self.layout.blocks}.{block}.{inner}": role for role, inner in self.layout.block.items()}
        return found


_LLAMA_BLOCK = {
    "input_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_QK_NORMS = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
_LLAMA_TOP = MappingProxyType({"embeddings": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"})
_LLAMA = Layout("model.layers", _LLAMA_TOP, MappingProxyType(_LLAMA_BLOCK))
_SANDWICHED = {
    "after_attention_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "after_mlp_norm": "post_feedforward_layernorm",
}

FAMILIES: Mapping[str, Layout] = MappingProxyType(
    {
        "llama": _LLAMA,
        "mistral": _LLAMA,
        "qwen2": _LLAMA,
        "qwen3": Layout("model.layers", _LLAMA_TOP, MappingProxyType(_LLAMA_BLOCK | _QK_NORMS)),
        "gemma3_text": Layout(
            "model.layers",
            _LLAMA_TOP,
            MappingProxyType(_LLAMA_BLOCK | _QK_NORMS | _SANDWICHED),
            norm_offset=1.0,
            scaled_embeddings=True,
        ),
        "phi3": Layout(
            "model.layers",
            _LLAMA_TOP,
            MappingProxyType(
                {
                    "input_norm": "input_layernorm",
                    "qkv": "self_attn.qkv_proj",
                    "o": "self_attn.o_proj",
                    "mlp_norm": "post_attention_layernorm",
                    "gate_up": "mlp.gate_up_proj",
                    "down": "mlp.down_proj",
                }
            ),
        ),
        "gpt2": Layout(
            "transformer.h",
            MappingProxyType(
                {
                    "embeddings": "transformer.wte",
                    "positions": "transformer.wpe",
                    "final_norm": "transformer.ln_f",
                    "head": "lm_head",
                }
            ),
            MappingProxyType(
                {
                    "input_norm": "ln_1",
                    "qkv": "attn.c_attn",
                    "o": "attn.c_proj",
                    "mlp_norm": "ln_2",
                    "up": "mlp.c_fc",
                    "down": "mlp.c_proj",
                }
            ),
            norm="layer",
            columns_first=True,
        ),
        "gpt_neox": Layout(
            "gpt_neox.layers",
            MappingProxyType(
                {"embeddings": "gpt_neox.embed_in", "final_norm": "gpt_neox.final_layer_norm", "head": "embed_out"}
            ),
            MappingProxyType(
                {
                    "input_norm": "input_layernorm",
                    "qkv": "attention.query_key_value",
                    "o": "attention.dense",
                    "mlp_norm": "post_attention_layernorm",
                    "up": "mlp.dense_h_to_4h",
                    "down": "mlp.dense_4h_to_h",
                }
            ),
            norm="layer",
            qkv_by_head=True,
            parallel=True,
        ),
    }
)


def decoder_facts(config: Mapping[str, Any], where: str) -> DecoderFacts:
    """Read a Hugging Face configuration.

    Raises: InputError: a family that isn't in the table, or a variation of one that the exporters don't compute.
    """
    family = str(config.get("model_type"))
    if family not in FAMILIES:
        raise InputError(
            f"models of the family {family!r} can't be exported: what they compute isn't in potstill's table",
            where=where,
            next_step=f"supported: {', '.join(FAMILIES)}",
        )
    layout = FAMILIES[family]
    _refuse_variations(config, where)
    heads = int(_first(config, "num_attention_heads", "n_head"))
    width = int(_first(config, "hidden_size", "n_embd"))
    head_width = int(config.get("head_dim") or width // heads)
    count = int(_first(config, "num_hidden_layers", "n_layer"))
    cap = config.get("final_logit_softcapping")
    return DecoderFacts(
        family=family,
        layout=layout,
        blocks=tuple(_block_facts(config, block, head_width, where) for block in range(count)),
        width=width,
        mlp_width=int(_first(config, "intermediate_size", "n_inner", default=4 * width)),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_width=head_width,
        context=int(_first(config, "max_position_embeddings", "n_positions", default=2048)),
        vocabulary=int(config["vocab_size"]),
        norm_epsilon=float(_first(config, "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", default=1e-6)),
        activation=_activation(config, where),
        parallel=layout.parallel and bool(config.get("use_parallel_residual", True)),
        embedding_scale=float(np.float32(width**0.5)) if layout.scaled_embeddings else 1.0,
        logit_cap=float(cap) if cap else None,
        tied=bool(config.get("tie_word_embeddings", family in {"gpt2", "gemma3_text"})),
    )


def _block_facts(config: Mapping[str, Any], block: int, head_width: int, where: str) -> BlockFacts:
    kind = _kind_of_block(config, block)
    window = config.get("sliding_window") if kind == "sliding_attention" else None
    scale = float(config.get("query_pre_attn_scalar") or head_width) ** -0.5
    if not config.get("scale_attn_weights", True):
        scale = 1.0
    if config.get("scale_attn_by_inverse_layer_idx"):
        scale /= block + 1
    rope = None if "positions" in FAMILIES[config["model_type"]].top else rope_of(config, kind, head_width, where)
    return BlockFacts(rope, int(window) if window else None, scale)


def _kind_of_block(config: Mapping[str, Any], block: int) -> str:
    """``layer_types``, or what configurations said before there were any."""
    if config.get("layer_types"):
        return str(config["layer_types"][block])
    if config["model_type"] == "gemma3_text":
        pattern = int(_first(config, "sliding_window_pattern", "_sliding_window_pattern", default=6))
        return "full_attention" if (block + 1) % pattern == 0 else "sliding_attention"
    by_switch = config.get("use_sliding_window", config["model_type"] not in {"qwen2", "qwen3"})
    sliding = by_switch and config.get("sliding_window") and block >= int(config.get("max_window_layers", 0))
    return "sliding_attention" if sliding else "full_attention"


def _refuse_variations(config: Mapping[str, Any], where: str) -> None:
    wrong = {
        "attn_logit_softcapping": "caps the scores of its attention",
        "use_bidirectional_attention": "looks at later tokens",
        "add_cross_attention": "attends to a second text",
        "quantization_config": "is quantized already by another tool",
    }
    for key, what in wrong.items():
        if config.get(key):
            raise InputError(f"{what} ({key}), which the exporters don't carry", where=where)


def _activation(config: Mapping[str, Any], where: str) -> Activation:
    name = _first(config, "hidden_activation", "activation_function", "hidden_act", default="silu")
    if name not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise InputError(f"has the activation {name!r} in its MLP", where=where, next_step=f"exported: {known}")
    return _ACTIVATIONS[name]


def _first(config: Mapping[str, Any], *keys: str, default: Any = None) -> Any:  # noqa: ANN401 - a JSON value
    return next((config[key] for key in keys if config.get(key) is not None), default)
