"""What does a decoder compute, step by step? Written once; an ``Ops`` per format turns the steps into its own graph.

Shapes: B rows of a batch, T tokens of a row, D width of the model, H heads, E columns of all heads, V vocabulary.
"""

from collections.abc import Sequence
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from potstill.export.families import Activation, DecoderFacts
from potstill.export.parts import Matrix, Parts

__all__ = ["Ops", "build_decoder"]

V = TypeVar("V")


class Ops(Protocol[V]):
    """One graph being written; a value of type V is an intermediate result of it.

    ``name`` is that of the weight by Hugging Face; a matrix that is used twice comes twice under the same name.
    """

    def embedding(self, name: str, table: Matrix) -> V:
        """Rows of the table for the token ids: [B, T, D]."""
        ...

    def position_embedding(self, name: str, table: Matrix) -> V:
        """Rows of the table for the positions: [B, T, D]."""
        ...

    def linear(self, name: str, inputs: V, weight: Matrix, bias: NDArray[np.float32] | None, *, is_head: bool) -> V:
        """Inputs times the transposed weight, plus the bias."""
        ...

    def norm(
        self,
        name: str,
        inputs: V,
        factor: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
        *,
        kind: Literal["rms", "layer"],
        epsilon: float,
    ) -> V:
        """RMS or layer norm over the last axis."""
        ...

    def by_head(self, inputs: V, heads: int, head_width: int) -> V:
        """[B, T, E] as [B, T, H, E / H]."""
        ...

    def joined(self, inputs: V, width: int) -> V:
        """[B, T, H, E / H] as [B, T, E]."""
        ...

    def split(self, inputs: V, sizes: Sequence[int]) -> list[V]:
        """Parts of the last axis."""
        ...

    def attention(self, block: int, query: V, key: V, value: V, facts: DecoderFacts) -> V:
        """Rotate queries and keys, put keys and values into the cache, attend to all of it: [B, T, E]."""
        ...

    def activation(self, inputs: V, kind: Activation) -> V: ...

    def add(self, left: V, right: V) -> V: ...

    def multiply(self, left: V, right: V) -> V: ...

    def scale(self, inputs: V, factor: float) -> V: ...

    def last_tokens(self, hidden: V) -> V:
        """Only the positions whose logits are wanted, where the format's callers can say which."""
        ...

    def capped(self, inputs: V, cap: float) -> V:
        """tanh(inputs / cap) * cap."""
        ...


def build_decoder(parts: Parts, ops: Ops[V]) -> V:
    """Write the whole decoder: token ids in, logits [B, T, V] out.

    Raises: InputError: a tensor is missing, or one is left over that the family's table doesn't know.
    """
    facts = parts.facts
    table_name, table = parts.name("embeddings"), parts.matrix("embeddings")
    hidden = ops.embedding(table_name, table)
    if facts.embedding_scale != 1.0:
        hidden = ops.scale(hidden, facts.embedding_scale)
    if parts.has("positions"):
        hidden = ops.add(hidden, ops.position_embedding(parts.name("positions"), parts.matrix("positions")))
    for block in range(len(facts.blocks)):
        hidden = _block(block, hidden, parts, ops)
    hidden = _norm("final_norm", None, ops.last_tokens(hidden), parts, ops)
    if parts.tied:
        logits = ops.linear(table_name, hidden, table, None, is_head=True)
    else:
        logits = ops.linear(parts.name("head"), hidden, parts.matrix("head"), parts.bias("head"), is_head=True)
    parts.require_all_read()
    return logits if facts.logit_cap is None else ops.capped(logits, facts.logit_cap)


def _block(block: int, hidden: V, parts: Parts, ops: Ops[V]) -> V:
    attended = _attention(block, _norm("input_norm", block, hidden, parts, ops), parts, ops)
    if parts.has("after_attention_norm", block):
        attended = _norm("after_attention_norm", block, attended, parts, ops)
    if parts.facts.parallel:
        changed = _mlp(block, _norm("mlp_norm", block, hidden, parts, ops), parts, ops)
        return ops.add(ops.add(changed, attended), hidden)
    hidden = ops.add(hidden, attended)
    changed = _mlp(block, _norm("mlp_norm", block, hidden, parts, ops), parts, ops)
    if parts.has("after_mlp_norm", block):
        changed = _norm("after_mlp_norm", block, changed, parts, ops)
    return ops.add(hidden, changed)


def _attention(block: int, normed: V, parts: Parts, ops: Ops[V]) -> V:
    facts = parts.facts
    query_columns, key_columns = facts.heads * facts.head_width, facts.kv_heads * facts.head_width
    if parts.has("qkv", block):
        fused = _linear("qkv", block, normed, parts, ops)
        query, key, value = ops.split(fused, (query_columns, key_columns, key_columns))
    else:
        query, key, value = (_linear(role, block, normed, parts, ops) for role in ("q", "k", "v"))
    if parts.has("q_norm", block):
        query = _norm("q_norm", block, ops.by_head(query, facts.heads, facts.head_width), parts, ops)
        key = _norm("k_norm", block, ops.by_head(key, facts.kv_heads, facts.head_width), parts, ops)
        query, key = ops.joined(query, query_columns), ops.joined(key, key_columns)
    return _linear("o", block, ops.attention(block, query, key, value, facts), parts, ops)


def _mlp(block: int, normed: V, parts: Parts, ops: Ops[V]) -> V:
    facts = parts.facts
    if parts.has("gate_up", block):
        fused = _linear("gate_up", block, normed, parts, ops)
        gate, up = ops.split(fused, (facts.mlp_width, facts.mlp_width))
        inner = ops.multiply(ops.activation(gate, facts.activation), up)
    elif parts.has("gate", block):
        gate = ops.activation(_linear("gate", block, normed, parts, ops), facts.activation)
        inner = ops.multiply(gate, _linear("up", block, normed, parts, ops))
    else:
        inner = ops.activation(_linear("up", block, normed, parts, ops), facts.activation)
    return _linear("down", block, inner, parts, ops)


def _linear(role: str, block: int, inputs: V, parts: Parts, ops: Ops[V]) -> V:
    weight, bias = parts.matrix(role, block), parts.bias(role, block)
    return ops.linear(parts.name(role, block), inputs, weight, bias, is_head=False)


def _norm(role: str, block: int | None, inputs: V, parts: Parts, ops: Ops[V]) -> V:
    layout = parts.facts.layout
    bias = parts.bias(role, block) if layout.norm == "layer" else None
    factor = parts.norm(role, block)
    epsilon = parts.facts.norm_epsilon
    return ops.norm(parts.name(role, block), inputs, factor, bias, kind=layout.norm, epsilon=epsilon)
