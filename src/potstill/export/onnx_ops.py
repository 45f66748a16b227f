"""How does each step of a decoder look as nodes of an ONNX graph that onnxruntime runs fast?

Attention is onnxruntime's GroupQueryAttention: it rotates, keeps the cache and attends in one node. Rows of a batch are
padded to the right; ``attention_mask`` says how long each is.

Shapes: B rows of a batch, T tokens, S tokens with those of the cache, J rotated pairs of a head's columns.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from potstill.export.families import Activation, DecoderFacts
from potstill.export.onnx_graph import CONTRIBUTED, OnnxGraph
from potstill.export.onnx_linear import Activations, embedding, linear
from potstill.export.parts import Matrix
from potstill.export.rope import Rope

__all__ = ["KEEP", "OnnxOps"]

KEEP = "num_logits_to_keep"
"""An input that may be left out: of how many last tokens logits are wanted; 0 for all."""

_LAST = np.iinfo(np.int64).max


class OnnxOps:
    """The graph of one decoder; see ``potstill.export.decoder.Ops``."""

    def __init__(self, graph: OnnxGraph, facts: DecoderFacts, activations: Activations) -> None:
        self._graph, self._activations = graph, activations
        self._context = facts.context
        self._ids = graph.input("input_ids", TensorProto.INT64, ["batch", "tokens"])
        self._mask = graph.input("attention_mask", TensorProto.INT64, ["batch", "total"])
        self._positions: str | None = None
        if "positions" in facts.layout.top or any(
            block.rope and not _in_one_node(block.rope) for block in facts.blocks
        ):
            self._positions = graph.input("position_ids", TensorProto.INT64, ["batch", "tokens"])
        self._cache_shape = ("batch", facts.kv_heads, "past", facts.head_width)
        self._present: list[tuple[str, str]] = []
        self._turns: dict[Rope, tuple[str, str]] = {}
        self._lengths_B, self._total = self._lengths()

    def embedding(self, name: str, table: Matrix) -> str:
        return embedding(self._graph, name, self._ids, table)

    def position_embedding(self, name: str, table: Matrix) -> str:
        assert self._positions is not None  # noqa: S101 - declared where the family has such a table
        return embedding(self._graph, name, self._positions, table)

    def linear(self, name: str, inputs: str, weight: Matrix, bias: NDArray[np.float32] | None, *, is_head: bool) -> str:
        product = linear(self._graph, name, inputs, weight, self._activations, is_head=is_head)
        if bias is None:
            return product
        return self._graph.node("Add", product, self._graph.weight(name.removesuffix(".weight") + ".bias", bias))

    def norm(
        self,
        name: str,
        inputs: str,
        factor: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
        *,
        kind: Literal["rms", "layer"],
        epsilon: float,
    ) -> str:
        graph = self._graph
        factor_D = graph.weight(name, factor)
        if kind == "layer":
            extra = [] if bias is None else [graph.weight(name.removesuffix(".weight") + ".bias", bias)]
            return graph.node("LayerNormalization", inputs, factor_D, *extra, axis=-1, epsilon=epsilon)
        squared = graph.node("Pow", inputs, graph.constant(2.0, np.float32))
        mean = graph.node("ReduceMean", squared, graph.constant([-1]), keepdims=1)
        root = graph.node("Sqrt", graph.node("Add", mean, graph.constant(epsilon, np.float32)))
        return graph.node("Mul", graph.node("Div", inputs, root), factor_D)

    def by_head(self, inputs: str, heads: int, head_width: int) -> str:
        return self._graph.node("Reshape", inputs, self._graph.constant([0, 0, heads, head_width]))

    def joined(self, inputs: str, width: int) -> str:
        return self._graph.node("Reshape", inputs, self._graph.constant([0, 0, width]))

    def split(self, inputs: str, sizes: Sequence[int]) -> list[str]:
        return self._graph.nodes("Split", inputs, self._graph.constant(list(sizes)), outputs=len(sizes), axis=-1)

    def attention(self, block: int, query: str, key: str, value: str, facts: DecoderFacts) -> str:
        own = facts.blocks[block]
        past = [
            self._graph.input(f"past_key_values.{block}.{part}", TensorProto.FLOAT, self._cache_shape)
            for part in ("key", "value")
        ]
        present = [f"present.{block}.{part}" for part in ("key", "value")]
        turns = () if own.rope is None else self._cosines_and_sines(own.rope)
        if own.rope is not None and not _in_one_node(own.rope):
            query = self._rotated(query, facts.heads, facts.head_width, own.rope)
            key = self._rotated(key, facts.kv_heads, facts.head_width, own.rope)
            turns = ()
        attended, *_ = self._graph.nodes(
            "GroupQueryAttention",
            *(query, key, value, *past, self._lengths_B, self._total, *turns),
            outputs=[f"attended.{block}", *present],
            domain=CONTRIBUTED,
            num_heads=facts.heads,
            kv_num_heads=facts.kv_heads,
            scale=own.score_scale,
            do_rotary=int(bool(turns)),
            local_window_size=own.window or -1,
        )
        self._present += [(name, name) for name in present]
        return attended

    def activation(self, inputs: str, kind: Activation) -> str:
        if kind == "silu":
            return self._graph.node("Mul", inputs, self._graph.node("Sigmoid", inputs))
        return self._graph.node("Gelu", inputs, approximate="tanh" if kind == "gelu_tanh" else "none")

    def add(self, left: str, right: str) -> str:
        return self._graph.node("Add", left, right)

    def multiply(self, left: str, right: str) -> str:
        return self._graph.node("Mul", left, right)

    def scale(self, inputs: str, factor: float) -> str:
        return self._graph.node("Mul", inputs, self._graph.constant(factor, np.float32))

    def capped(self, inputs: str, cap: float) -> str:
        return self.scale(self._graph.node("Tanh", self.scale(inputs, 1 / cap)), cap)

    def last_tokens(self, hidden: str) -> str:
        start = self._graph.node("Neg", self._graph.default(KEEP, 0))
        constant = self._graph.constant
        return self._graph.node("Slice", hidden, start, constant([_LAST]), constant([1]))

    def finish(self, logits: str, vocabulary: int) -> None:
        """Declare the outputs: logits [B, T, V], and the cache with the new tokens in it."""
        self._graph.output(logits, "logits", TensorProto.FLOAT, ["batch", "kept", vocabulary])
        shape = ("batch", self._cache_shape[1], "total", self._cache_shape[3])
        for value, name in self._present:
            self._graph.output(value, name, TensorProto.FLOAT, shape)

    def _lengths(self) -> tuple[str, str]:
        """Each row's last position, and how many tokens the longest row has."""
        graph = self._graph
        number_B = graph.node("ReduceSum", self._mask, graph.constant([1]), keepdims=0)
        last_B = graph.node("Cast", graph.node("Sub", number_B, graph.constant(1)), to=TensorProto.INT32)
        total = graph.node("Gather", graph.node("Shape", self._mask), graph.constant(1))
        return last_B, graph.node("Cast", total, to=TensorProto.INT32)

    def _cosines_and_sines(self, rope: Rope) -> tuple[str, str]:
        """Tables [context, J], computed by onnxruntime when it loads the file."""
        if rope not in self._turns:
            graph = self._graph
            ends = (graph.constant(number, np.float32) for number in (0.0, float(self._context), 1.0))
            positions_P1 = graph.node("Unsqueeze", graph.node("Range", *ends), graph.constant([1]))
            angles_PJ = graph.node("Mul", positions_P1, graph.constant(np.array(rope.frequencies_J), np.float32))
            self._turns[rope] = (graph.node("Cos", angles_PJ), graph.node("Sin", angles_PJ))
        return self._turns[rope]

    def _rotated(self, inputs: str, heads: int, head_width: int, rope: Rope) -> str:
        """Columns j and j + J of every head [B, T, H, E / H] turned by the angle of pair j; those after 2 J kept."""
        graph = self._graph
        assert self._positions is not None  # noqa: S101 - declared where there is such a rotation
        cosines, sines = (
            graph.node("Unsqueeze", graph.node("Gather", table, self._positions), graph.constant([2]))
            for table in self._cosines_and_sines(rope)
        )
        pairs = rope.columns // 2
        rest = head_width - rope.columns
        left, right, *kept = self.split(
            self.by_head(inputs, heads, head_width), (pairs, pairs, *([rest] if rest else []))
        )
        turned_left = graph.node("Sub", self.multiply(left, cosines), self.multiply(right, sines))
        turned_right = graph.node("Add", self.multiply(right, cosines), self.multiply(left, sines))
        return self.joined(graph.node("Concat", turned_left, turned_right, *kept, axis=-1), heads * head_width)


def _in_one_node(rope: Rope) -> bool:
    """Whether GroupQueryAttention can rotate: it takes pairs eight at a time."""
    return len(rope.frequencies_J) % 8 == 0
