"""Which weights does a model of a known family have? From its config.json alone, without torch, in an instant.

Only families whose layout is written down here, and only configs of which every size that matters is known; for any
other the model is built without memory, which takes some seconds of imports.

Letters: D width, F MLP width, V vocabulary, H columns of all heads, K columns of all key-value heads.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

__all__ = ["Layout", "Weights", "layout_of"]

Part = Literal["embeddings", "attention", "mlp", "norms", "head"]
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Weights:
    """``count`` equal weights of a part: matrices of ``rows`` x ``columns`` (inputs), or vectors of ``rows``."""

    part: Part
    rows: int
    columns: int | None = None
    count: int = 1

    @property
    def parameters(self) -> int:
        """Of all of them together."""
        return self.rows * (self.columns or 1) * self.count


@dataclass(frozen=True)
class Layout:
    """What a family's model is called, its sizes, and all its weights; a tied head isn't listed."""

    architecture: str
    blocks: int
    width: int
    vocabulary: int
    weights: tuple[Weights, ...]


def layout_of(config: Config) -> Layout | None:
    """The layout of a config; None where the family isn't known here or the config leaves a size to a default.

    Source: the modelling code of transformers 5; tests compare every family with the model that it builds.
    """
    family = _FAMILIES.get(str(config.get("model_type")))
    if family is None:
        return None
    architecture, keys, tied, weights_of = family
    if any(not isinstance(config.get(key), int) for key in keys) or not _is_plain(config):
        return None
    blocks, width = int(config[keys[0]]), int(config[keys[1]])
    vocabulary = int(config[keys[2]])
    found = list(weights_of(config, blocks, width))
    found.append(Weights("embeddings", vocabulary, width))
    if not config.get("tie_word_embeddings", tied):
        found.append(Weights("head", vocabulary, width))
    return Layout(architecture, blocks, width, vocabulary, tuple(found))


def _linear(part: Part, rows: int, columns: int, count: int, *, bias: bool = False) -> Iterator[Weights]:
    yield Weights(part, rows, columns, count)
    if bias:
        yield Weights(part, rows, None, count)


def _gated(config: Config, blocks: int, width: int) -> Iterator[Weights]:
    """Llama, Mistral, Qwen2, Qwen3: q, k, v, o; gate, up, down; two norms a block and one at the end."""
    kind = config["model_type"]
    heads = config["num_attention_heads"]
    head_width = config.get("head_dim") or width // heads
    queries, keys = heads * head_width, config["num_key_value_heads"] * head_width
    bias = bool(config.get("attention_bias", False)) and kind in {"llama", "qwen3"}
    yield from _linear("attention", queries, width, blocks, bias=bias or kind == "qwen2")
    yield from _linear("attention", keys, width, 2 * blocks, bias=bias or kind == "qwen2")
    yield from _linear("attention", width, queries, blocks, bias=bias)
    mlp_bias = bool(config.get("mlp_bias", False)) and kind == "llama"
    yield from _linear("mlp", config["intermediate_size"], width, 2 * blocks, bias=mlp_bias)
    yield from _linear("mlp", width, config["intermediate_size"], blocks, bias=mlp_bias)
    yield Weights("norms", width, None, 2 * blocks + 1)
    if kind == "qwen3":
        yield Weights("norms", head_width, None, 2 * blocks)


def _phi3(config: Config, blocks: int, width: int) -> Iterator[Weights]:
    """q, k and v in one, gate and up in one."""
    head_width = config.get("head_dim") or width // config["num_attention_heads"]
    queries, keys = (config[name] * head_width for name in ("num_attention_heads", "num_key_value_heads"))
    yield from _linear("attention", queries + 2 * keys, width, blocks)
    yield from _linear("attention", width, queries, blocks)
    yield from _linear("mlp", 2 * config["intermediate_size"], width, blocks)
    yield from _linear("mlp", width, config["intermediate_size"], blocks)
    yield Weights("norms", width, None, 2 * blocks + 1)


def _gpt2(config: Config, blocks: int, width: int) -> Iterator[Weights]:
    mlp_width = config.get("n_inner") or 4 * width
    yield from _linear("attention", 3 * width, width, blocks, bias=True)
    yield from _linear("attention", width, width, blocks, bias=True)
    yield from _linear("mlp", mlp_width, width, blocks, bias=True)
    yield from _linear("mlp", width, mlp_width, blocks, bias=True)
    yield Weights("norms", width, None, 2 * (2 * blocks + 1))
    yield Weights("embeddings", config["n_positions"], width)


def _gpt_neox(config: Config, blocks: int, width: int) -> Iterator[Weights]:
    bias = bool(config.get("attention_bias", True))
    yield from _linear("attention", 3 * width, width, blocks, bias=bias)
    yield from _linear("attention", width, width, blocks, bias=bias)
    yield from _linear("mlp", config["intermediate_size"], width, blocks, bias=True)
    yield from _linear("mlp", width, config["intermediate_size"], blocks, bias=True)
    yield Weights("norms", width, None, 2 * (2 * blocks + 1))


def _opt(config: Config, blocks: int, width: int) -> Iterator[Weights]:
    """Learnt positions, two more than the context is long."""
    yield from _linear("attention", width, width, 4 * blocks, bias=True)
    yield from _linear("mlp", config["ffn_dim"], width, blocks, bias=True)
    yield from _linear("mlp", width, config["ffn_dim"], blocks, bias=True)
    yield Weights("norms", width, None, 2 * (2 * blocks + 1))
    yield Weights("embeddings", config["max_position_embeddings"] + 2, width)


def _is_plain(config: Config) -> bool:
    """Whether the model has no parts but those counted here: an OPT may project its embeddings or lack its norms."""
    if config["model_type"] != "opt":
        return True
    switches = ("enable_bias", "do_layer_norm_before", "layer_norm_elementwise_affine")
    usual = all(config.get(name, True) for name in switches) and not config.get("_remove_final_layer_norm")
    return usual and config.get("word_embed_proj_dim", config["hidden_size"]) == config["hidden_size"]


_SIZES = ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", "intermediate_size")
_GATED = (*_SIZES, "num_key_value_heads")
_Family = tuple[str, tuple[str, ...], bool, Callable[[Config, int, int], Iterator[Weights]]]
_FAMILIES: Mapping[str, _Family] = MappingProxyType(
    {
        "llama": ("LlamaForCausalLM", _GATED, False, _gated),
        "mistral": ("MistralForCausalLM", _GATED, False, _gated),
        "qwen2": ("Qwen2ForCausalLM", _GATED, False, _gated),
        "qwen3": ("Qwen3ForCausalLM", (*_GATED, "head_dim"), False, _gated),
        "phi3": ("Phi3ForCausalLM", _GATED, False, _phi3),
        "gpt2": ("GPT2LMHeadModel", ("n_layer", "n_embd", "vocab_size", "n_positions"), True, _gpt2),
        "gpt_neox": ("GPTNeoXForCausalLM", _SIZES, False, _gpt_neox),
        "opt": (
            "OPTForCausalLM",
            ("num_hidden_layers", "hidden_size", "vocab_size", "ffn_dim", "max_position_embeddings"),
            True,
            _opt,
        ),
    }
)
