"""What does llama.cpp compute for each family, and how does it call and order its tensors? Pure: tables and rows.

``ARCHITECTURES`` says what llama.cpp does for a family without being asked. A model that needs something else, and
that no key of a GGUF file can ask for, is refused.

Shapes: O rows (outputs) of a weight, J rotated pairs of columns of a head.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from potstill.core.errors import InputError
from potstill.export.families import Activation, DecoderFacts, decoder_facts
from potstill.export.parts import qkv_rows
from potstill.export.rope import Rope

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "approximations",
    "architecture_of",
    "gguf_facts",
    "gguf_name",
    "local_period",
    "norm_change",
    "rope_factors",
    "row_order",
]

_LINEARS = frozenset({"q", "k", "v", "qkv", "o", "gate", "up", "down"})
_LAYERS_OF_GEMMA_27B = 62


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's graphs: what is fixed in it, and what a file may vary.

    ``neighbours``: pairs 2j and 2j + 1 of a head are rotated, not j and j + half. ``must_have_bias`` and
    ``may_have_bias`` are roles of linears. ``wants_own_head``: a tied head stands in the file a second time.
    """

    arch: gguf.MODEL_ARCH
    activation: Activation = "silu"
    ropes: frozenset[str] = frozenset({"default", "linear"})
    neighbours: bool = False
    rotates_a_part: bool = False
    has_windows: bool = False
    caps_logits: bool = False
    must_have_bias: frozenset[str] = frozenset()
    may_have_bias: frozenset[str] = frozenset()
    wants_own_head: bool = False


_LLAMA = Architecture(
    gguf.MODEL_ARCH.LLAMA, ropes=frozenset({"default", "linear", "llama3"}), neighbours=True, may_have_bias=_LINEARS
)

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "llama": _LLAMA,
        "mistral": _LLAMA,
        "qwen2": Architecture(gguf.MODEL_ARCH.QWEN2, must_have_bias=frozenset({"q", "k", "v"})),
        "qwen3": Architecture(gguf.MODEL_ARCH.QWEN3),
        "gemma3_text": Architecture(gguf.MODEL_ARCH.GEMMA3, activation="gelu_tanh", has_windows=True, caps_logits=True),
        "phi3": Architecture(gguf.MODEL_ARCH.PHI3, rotates_a_part=True),
        "gpt2": Architecture(gguf.MODEL_ARCH.GPT2, activation="gelu_tanh", must_have_bias=_LINEARS),
        "gpt_neox": Architecture(
            gguf.MODEL_ARCH.GPTNEOX,
            activation="gelu_tanh",
            rotates_a_part=True,
            must_have_bias=_LINEARS,
            wants_own_head=True,
        ),
    }
)
"""``model_type`` of the families that can be exported: what llama.cpp computes for them."""


def architecture_of(facts: DecoderFacts) -> Architecture:
    """llama.cpp's graph for a model."""
    return ARCHITECTURES[facts.family]


def gguf_facts(config: Mapping[str, Any], where: str) -> DecoderFacts:
    """Read a Hugging Face configuration, and hold it against what llama.cpp computes.

    Raises: InputError: another family, or a variation that the file couldn't say.
    """
    family = config.get("model_type")
    if family not in ARCHITECTURES:
        raise InputError(
            f"models of the family {family!r} can't be exported to GGUF",
            where=where,
            next_step=f"supported: {', '.join(ARCHITECTURES)}",
        )
    facts = decoder_facts(config, where)
    wrong = _impossible(facts, architecture_of(facts))
    if wrong:
        raise InputError(wrong, where=where, next_step="export it to another format")
    if not architecture_of(facts).has_windows:
        _refuse_windows(facts, where)
    return facts


def _impossible(facts: DecoderFacts, runs: Architecture) -> str | None:
    """What a model needs that llama.cpp doesn't compute; None where it computes all."""
    name = runs.arch.name
    if facts.activation != runs.activation and not (facts.activation == "gelu" and runs.activation == "gelu_tanh"):
        return f"llama.cpp's {name} has {runs.activation} in its MLP, this model {facts.activation!r}"
    if facts.logit_cap is not None and not runs.caps_logits:
        return f"caps its logits at {facts.logit_cap}, which llama.cpp's {name} doesn't"
    if runs.has_windows:
        return _impossible_rope(facts, runs) or _impossible_locals(facts)
    if any(not np.isclose(block.score_scale, facts.head_width**-0.5, rtol=1e-6) for block in facts.blocks):
        return f"scales its attention in its own way, llama.cpp's {name} by the root of the head's width"
    return _impossible_rope(facts, runs)


def _impossible_rope(facts: DecoderFacts, runs: Architecture) -> str | None:
    for rope in {block.rope for block in facts.blocks if block.rope is not None}:
        if rope.kind not in runs.ropes:
            return f"llama.cpp's {runs.arch.name} doesn't stretch positions by {rope.kind!r}"
        if rope.columns != facts.head_width and not runs.rotates_a_part:
            return f"rotates {rope.columns} of {facts.head_width} columns of a head, llama.cpp's {runs.arch.name} all"
    return None


def _impossible_locals(facts: DecoderFacts) -> str | None:
    """Blocks that see a window share one rotation, unstretched, and so do those that see everything."""
    local = {(block.rope, block.window) for block in facts.blocks if block.window}
    whole = {block.rope for block in facts.blocks if not block.window}
    if len(local) > 1 or len(whole) > 1:
        return "has more than two kinds of blocks, which llama.cpp's GEMMA3 doesn't know"
    if local and local_period(facts) is None:
        return "has windows in an order of blocks that isn't periodic, which llama.cpp's GEMMA3 doesn't know"
    if any(rope is not None and rope.kind != "default" for rope, _ in local):
        return "stretches the positions of blocks that see a window, which llama.cpp's GEMMA3 doesn't"
    return None


def local_period(facts: DecoderFacts) -> int | None:
    """The number p for which every p-th block sees everything and all others a window; None if there is none."""
    windows = [bool(block.window) for block in facts.blocks]
    periods = range(1, len(windows) + 2)
    return next((p for p in periods if all(w == (i % p < p - 1) for i, w in enumerate(windows))), None)


def _refuse_windows(facts: DecoderFacts, where: str) -> None:
    windows = [block.window for block in facts.blocks if block.window and block.window < facts.context]
    if windows:
        raise InputError(
            f"looks back {windows[0]} tokens only, which llama.cpp doesn't do in this family",
            where=where,
            next_step="export it to another format, or set max_position_embeddings to that window in config.json",
        )


def approximations(facts: DecoderFacts) -> list[str]:
    """What a file has or computes otherwise than the model does, in words for the reader; often nothing."""
    runs, found = architecture_of(facts), []
    if facts.activation != runs.activation:
        found.append("llama.cpp computes the GELU of this family by its tanh formula, the model by the error function")
    if facts.tied and runs.wants_own_head:
        found.append("llama.cpp wants a head of its own in this family: the tied embeddings stand in the file twice")
    return found


def gguf_name(name: str, facts: DecoderFacts) -> str:
    """The name of a tensor in GGUF.

    Raises: InputError: llama.cpp knows no such tensor in this family.
    """
    arch = architecture_of(facts).arch
    found = gguf.get_tensor_name_map(arch, len(facts.blocks)).get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise InputError(f"is a tensor that llama.cpp's {arch.name} doesn't have", where=name)
    return str(found)


def row_order(role: str, facts: DecoderFacts) -> NDArray[np.int64] | None:
    """Which row of a weight or bias stands at each place in llama.cpp's order; None where the order is the same.

    Hugging Face rotates column j of a head with column j + half. llama.cpp's Llama rotates neighbours 2j and 2j + 1, so
    rows of queries and keys interleave; GPT-NeoX's rows of q, k and v, kept head by head, are put apart. Only whole
    rows move, so codes and scales are those that were chosen.

    Returns: int64 [O].
    """
    if role == "qkv" and facts.layout.qkv_by_head:
        return qkv_rows(facts)
    if role not in {"q", "k"} or not architecture_of(facts).neighbours:
        return None
    rows = np.arange((facts.heads if role == "q" else facts.kv_heads) * facts.head_width)
    return rows.reshape(-1, 2, facts.head_width // 2).swapaxes(1, 2).ravel()


def norm_change(role: str, facts: DecoderFacts) -> tuple[np.float32, np.float32]:
    """What a norm's weight gets added, and is then multiplied by, so that llama.cpp's graph computes the model's.

    Gemma's norms multiply by 1 + weight, llama.cpp's by the weight. Gemma's own scale of the scores goes into the norm
    of the queries, where it isn't the one that llama.cpp takes.
    """
    offset = np.float32(facts.layout.norm_offset)
    if role != "q_norm" or not architecture_of(facts).has_windows:
        return offset, np.float32(1)
    of_a_27b = len(facts.blocks) == _LAYERS_OF_GEMMA_27B
    taken = (facts.width // facts.heads if of_a_27b else facts.head_width) ** -0.5
    return offset, np.float32(facts.blocks[0].score_scale / taken)


def rope_factors(rope: Rope, head_width: int) -> NDArray[np.float32] | None:
    """What each pair's frequency is divided by, for the stretchings that llama.cpp reads from a tensor.

    Returns: float32 [J]; None where a key says it all.
    """
    if rope.kind != "llama3":
        return None
    exponents_J = np.arange(0, head_width, 2, dtype=np.float64) / head_width
    factors_J: NDArray[np.float32] = (rope.base**-exponents_J / np.array(rope.frequencies_J)).astype(np.float32)
    return factors_J
