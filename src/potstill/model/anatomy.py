"""Where a causal language model keeps its parts: decoder, blocks, linears by role, output head.

The table ``FAMILIES`` is the whole of it: one line per ``model_type`` of transformers. A family that isn't there is
refused, for a guess about how logits are scaled would be a silent error.

Shapes: B rows, T tokens, P positions, D width, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.core.errors import InputError

__all__ = [
    "FAMILIES",
    "Family",
    "blocks",
    "decoder",
    "embeddings",
    "family_of",
    "final_norm",
    "hidden_states",
    "linear",
    "logits_of",
    "output_head",
    "watched_blocks",
]

Role = str
"""One of q, k, v, o (attention), up, gate, down (MLP). Fused weights stand under ``qkv`` and ``gate_up``."""

_POSITIONS_PER_STEP = 64


@dataclass(frozen=True)
class Family:
    """Paths of a family's parts: from the causal model (decoder, embeddings, blocks, norm), from a block (linears)."""

    decoder: str
    embeddings: str
    blocks: str
    norm: str
    linears: Mapping[Role, str]


_SEPARATE = MappingProxyType(
    {
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.o_proj",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    }
)
_FUSED = MappingProxyType(
    {
        "qkv": "self_attn.qkv_proj",
        "o": "self_attn.o_proj",
        "gate_up": "mlp.gate_up_proj",
        "down": "mlp.down_proj",
    }
)
_GPT2 = MappingProxyType({"qkv": "attn.c_attn", "o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"})
_NEOX = MappingProxyType(
    {
        "qkv": "attention.query_key_value",
        "o": "attention.dense",
        "up": "mlp.dense_h_to_4h",
        "down": "mlp.dense_4h_to_h",
    }
)
_OPT = MappingProxyType(
    {
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.out_proj",
        "up": "fc1",
        "down": "fc2",
    }
)
_PHI = MappingProxyType(
    {
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.dense",
        "up": "mlp.fc1",
        "down": "mlp.fc2",
    }
)
_LLAMA_LIKE = Family("model", "model.embed_tokens", "model.layers", "model.norm", _SEPARATE)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "cohere": _LLAMA_LIKE,
        "gemma": _LLAMA_LIKE,
        "gemma2": _LLAMA_LIKE,
        "gemma3_text": _LLAMA_LIKE,
        "gpt2": Family("transformer", "transformer.wte", "transformer.h", "transformer.ln_f", _GPT2),
        "gpt_neox": Family("gpt_neox", "gpt_neox.embed_in", "gpt_neox.layers", "gpt_neox.final_layer_norm", _NEOX),
        "granite": _LLAMA_LIKE,
        "llama": _LLAMA_LIKE,
        "mistral": _LLAMA_LIKE,
        "olmo2": _LLAMA_LIKE,
        "opt": Family(
            "model", "model.decoder.embed_tokens", "model.decoder.layers", "model.decoder.final_layer_norm", _OPT
        ),
        "phi": Family("model", "model.embed_tokens", "model.layers", "model.final_layernorm", _PHI),
        "phi3": Family("model", "model.embed_tokens", "model.layers", "model.norm", _FUSED),
        "qwen2": _LLAMA_LIKE,
        "qwen3": _LLAMA_LIKE,
        "smollm3": _LLAMA_LIKE,
    }
)


def family_of(model: PreTrainedModel) -> Family:
    """The line of ``FAMILIES`` for this model.

    Raises: InputError: the family isn't in the table, or this model is no causal one of it.
    """
    model_type = str(getattr(model.config, "model_type", None))
    if model_type not in FAMILIES:
        raise InputError(
            f"{type(model).__name__} is of the family {model_type!r}, whose parts potstill doesn't know",
            next_step=f"use a model of one of {', '.join(FAMILIES)}",
        )
    return FAMILIES[model_type]


def decoder(model: PreTrainedModel) -> nn.Module:
    """The model without its output head: token ids in, hidden states after the final norm out."""
    return _part(model, family_of(model).decoder)


def embeddings(model: PreTrainedModel) -> nn.Embedding:
    """The token embeddings."""
    part = _part(model, family_of(model).embeddings)
    assert isinstance(part, nn.Embedding)  # noqa: S101 - the table's own claim
    return part


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The blocks, first to last."""
    part = _part(model, family_of(model).blocks)
    assert isinstance(part, nn.ModuleList)  # noqa: S101 - the table's own claim
    return part


def final_norm(model: PreTrainedModel) -> nn.Module:
    """The norm after the last block."""
    return _part(model, family_of(model).norm)


def output_head(model: PreTrainedModel) -> nn.Linear:
    """The linear from width to vocabulary; its weight may be that of the embeddings."""
    part = _part(model, "lm_head")
    assert isinstance(part, nn.Linear)  # noqa: S101 - so in every family of the table
    return part


def linear(model: PreTrainedModel, block: int, role: Role) -> nn.Module:
    """The linear of a role in a block; GPT-2's is a ``Conv1D``, whose weight is [in, out].

    Raises: InputError: this family has no such linear (fused weights stand under ``qkv`` and ``gate_up``).
    """
    linears = family_of(model).linears
    if role not in linears:
        what = f"{type(model).__name__} has no linear {role!r}; it has {', '.join(linears)}"
        raise InputError(what, next_step="use a model whose attention and MLP weights are kept apart, such as a Llama")
    return _part(blocks(model)[block], linears[role])


def hidden_states(model: PreTrainedModel, tokens_BT: Tensor) -> Tensor:
    """Hidden states [B, T, D] after the final norm. Causal, so padding to the right changes nothing before it."""
    states_BTD: Tensor = decoder(model)(input_ids=tokens_BT, use_cache=False).last_hidden_state
    return states_BTD


@contextmanager
def watched_blocks(model: PreTrainedModel, wanted: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """While inside, the model's forward pass leaves the output [B, T, D] of the wanted blocks in the mapping."""
    seen: dict[int, Tensor] = {}

    def keep(number: int) -> Callable[[nn.Module, object, Tensor | tuple[Tensor, ...]], None]:
        def hook(_block: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            seen[number] = output if isinstance(output, Tensor) else output[0]

        return hook

    hooks = [blocks(model)[number].register_forward_hook(keep(number)) for number in set(wanted)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def logits_of(model: PreTrainedModel, hidden_PD: Tensor) -> Tensor:
    """Logits [P, V] of hidden states after the final norm: the model's own, its scaling and soft-capping included.

    With ``hidden_states`` it lets a caller spend B x T x V memory on the positions that count only. The head runs on a
    multiple of 64 positions, filled up with zeros: CPU kernels are compiled per shape, and with another number of
    positions in every batch a training step in bfloat16 took seven times as long.
    """
    num_missing = -len(hidden_PD) % _POSITIONS_PER_STEP
    if num_missing:  # to cut off nothing costs a copy of the gradient
        hidden_PD = nn.functional.pad(hidden_PD, (0, 0, 0, num_missing))
    logits_PV: Tensor = output_head(model)(hidden_PD)
    if num_missing:
        logits_PV = logits_PV[:-num_missing]
    config = model.config
    if config.model_type == "granite":
        return logits_PV / float(config.logits_scaling)
    if config.model_type == "cohere":
        return logits_PV * float(config.logit_scale)
    cap: float | None = getattr(config, "final_logit_softcapping", None)
    return logits_PV if cap is None else torch.tanh(logits_PV / cap) * cap


def _part(module: nn.Module, path: str) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError as error:
        raise InputError(
            f"{type(module).__name__} has no part {path!r}",
            next_step="load it as a causal language model, with AutoModelForCausalLM",
        ) from error
