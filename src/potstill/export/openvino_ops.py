"""How does each step of a decoder look as nodes of an OpenVINO model that keeps its cache itself?

The model has states for keys and values, and the inputs that ``openvino_genai`` feeds: ``input_ids``,
``attention_mask``, ``position_ids``, and ``beam_idx``, which says where each row's past stands.

Shapes: B rows of a batch, T tokens, S tokens with those of the cache, J rotated pairs of a head's columns.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset15 as op
from openvino.op.util import Variable, VariableInfo

from potstill.core import interrupt
from potstill.export.families import Activation, BlockFacts, DecoderFacts
from potstill.export.openvino_weights import WeightStore
from potstill.export.parts import Matrix
from potstill.export.rope import Rope

__all__ = ["OpenvinoOps"]

Node = Any
"""An OpenVINO node or output; the package's types are few."""

_HIDDEN = float(np.finfo(np.float32).min)


class OpenvinoOps:
    """The graph of one decoder; see ``potstill.export.decoder.Ops``."""

    def __init__(self, facts: DecoderFacts) -> None:
        self._facts = facts
        self._weights = WeightStore()
        self._ids = _parameter("input_ids", 2, openvino.Type.i64)
        self._mask = _parameter("attention_mask", 2, openvino.Type.i64)
        self._positions = _parameter("position_ids", 2, openvino.Type.i64)
        self._beams = _parameter("beam_idx", 1, openvino.Type.i32)
        self._sinks: list[Node] = []
        self._turns: dict[Rope, tuple[Node, Node]] = {}
        self._seen: dict[int | None, Node] = {}

    def embedding(self, name: str, table: Matrix) -> Node:
        rows = self._weights.floats(name, table)
        return op.gather(rows, op.convert(self._ids, "i32"), _integer(0))

    def position_embedding(self, name: str, table: Matrix) -> Node:
        rows = self._weights.floats(name, table)
        return op.gather(rows, op.convert(self._positions, "i32"), _integer(0))

    def linear(
        self,
        name: str,
        inputs: Node,
        weight: Matrix,
        bias: NDArray[np.float32] | None,
        *,
        is_head: bool,  # noqa: ARG002 - all products are alike here
    ) -> Node:
        interrupt.check()
        product = op.matmul(inputs, self._weights.floats(name, weight), transpose_a=False, transpose_b=True)
        if bias is None:
            return product
        return op.add(product, self._weights.vector(name.removesuffix(".weight") + ".bias", bias))

    def norm(
        self,
        name: str,
        inputs: Node,
        factor: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
        *,
        kind: Literal["rms", "layer"],
        epsilon: float,
    ) -> Node:
        factor_D = self._weights.vector(name, factor)
        if kind == "rms":
            mean = op.reduce_mean(op.power(inputs, _float(2.0)), _integer([-1]), keep_dims=True)
            root = op.sqrt(op.add(mean, _float(epsilon)))
            return op.multiply(op.multiply(inputs, op.divide(_float(1.0), root)), factor_D)
        normed = op.multiply(op.mvn(inputs, _integer([-1]), True, epsilon, "inside_sqrt"), factor_D)
        if bias is None:
            return normed
        return op.add(normed, self._weights.vector(name.removesuffix(".weight") + ".bias", bias))

    def by_head(self, inputs: Node, heads: int, head_width: int) -> Node:
        return op.reshape(inputs, _integer([0, 0, heads, head_width]), special_zero=True)

    def joined(self, inputs: Node, width: int) -> Node:
        return op.reshape(inputs, _integer([0, 0, width]), special_zero=True)

    def split(self, inputs: Node, sizes: Sequence[int]) -> list[Node]:
        parts = op.variadic_split(inputs, _integer(-1), _integer(list(sizes)))
        return [parts.output(number) for number in range(len(sizes))]

    def attention(self, block: int, query: Node, key: Node, value: Node, facts: DecoderFacts) -> Node:
        own = facts.blocks[block]
        query_BHTh = self._with_heads_first(query, facts.heads)
        key_BHTh, value_BHTh = (self._with_heads_first(part, facts.kv_heads) for part in (key, value))
        if own.rope is not None:
            query_BHTh, key_BHTh = (self._rotated(part, own.rope) for part in (query_BHTh, key_BHTh))
        keys_BHSh, values_BHSh = (
            self._repeated(self._with_past(part, f"past_key_values.{block}.{name}present.{block}.{name}"))
            for part, name in ((key_BHTh, "key"), (value_BHTh, "value"))
        )
        attended_BHTh = op.scaled_dot_product_attention(
            query_BHTh, keys_BHSh, values_BHSh, self._bias_of(own), _float(own.score_scale), causal=False
        )
        turned = op.transpose(attended_BHTh, _integer([0, 2, 1, 3]))
        return self.joined(turned, facts.heads * facts.head_width)

    def activation(self, inputs: Node, kind: Activation) -> Node:
        if kind == "silu":
            return op.swish(inputs)
        return op.gelu(inputs, "tanh" if kind == "gelu_tanh" else "erf")

    def add(self, left: Node, right: Node) -> Node:
        return op.add(left, right)

    def multiply(self, left: Node, right: Node) -> Node:
        return op.multiply(left, right)

    def scale(self, inputs: Node, factor: float) -> Node:
        return op.multiply(inputs, _float(factor))

    def capped(self, inputs: Node, cap: float) -> Node:
        return self.scale(op.tanh(self.scale(inputs, 1 / cap)), cap)

    def last_tokens(self, hidden: Node) -> Node:
        """All of them: ``openvino_genai`` cuts the graph here itself."""
        return hidden

    def model(self, logits: Node) -> openvino.Model:
        """The whole model, with names of nodes that depend on their order only."""
        result = op.result(logits)
        result.get_output_tensor(0).set_names({"logits"})
        parameters = [self._ids, self._mask, self._positions, self._beams]
        model = openvino.Model([result], self._sinks, parameters, "decoder")
        for number, node in enumerate(model.get_ordered_ops()):
            if node.get_friendly_name() not in self._weights.names and node.get_type_name() != "Parameter":
                node.set_friendly_name(f"n{number}")
        return model

    def _with_heads_first(self, inputs: Node, heads: int) -> Node:
        return op.transpose(self.by_head(inputs, heads, self._facts.head_width), _integer([0, 2, 1, 3]))

    def _with_past(self, new_BHTh: Node, name: str) -> Node:
        """The state of this name, rows in the order of ``beam_idx``, and the new columns; kept for the next call."""
        info = VariableInfo()
        heads, width = self._facts.kv_heads, self._facts.head_width
        info.data_shape = openvino.PartialShape([-1, heads, -1, width])
        info.data_type, info.variable_id = openvino.Type.f32, name
        variable = Variable(info)
        batch = op.gather(op.shape_of(self._ids), _integer([0]), _integer(0))
        shape = op.concat([batch, _integer([heads, 0, width])], 0)
        state = op.read_value(op.broadcast(_float(0.0), shape), variable)
        whole_BHSh = op.concat([op.gather(state, self._beams, _integer(0)), new_BHTh], 2)
        self._sinks.append(op.assign(whole_BHSh, variable))
        return whole_BHSh

    def _repeated(self, part_BHSh: Node) -> Node:
        """Every head of keys or values as often as queries share it."""
        facts = self._facts
        times = facts.heads // facts.kv_heads
        if times == 1:
            return part_BHSh
        inner = op.unsqueeze(part_BHSh, _integer(2))
        length = op.gather(op.shape_of(part_BHSh), _integer([0, 2]), _integer(0))
        batch, tokens = (op.gather(length, _integer([place]), _integer(0)) for place in (0, 1))
        shape = op.concat([batch, _integer([facts.kv_heads, times]), tokens, _integer([facts.head_width])], 0)
        spread = op.broadcast(inner, shape, broadcast_spec="BIDIRECTIONAL")
        return op.reshape(spread, _integer([0, facts.heads, -1, facts.head_width]), special_zero=True)

    def _rotated(self, inputs_BHTh: Node, rope: Rope) -> Node:
        """Columns j and j + J of every head turned by the angle of pair j; those after 2 J kept."""
        cosines, sines = self._cosines_and_sines(rope)
        pairs, rest = rope.columns // 2, self._facts.head_width - rope.columns
        left, right, *kept = self.split(inputs_BHTh, (pairs, pairs, *((rest,) if rest else ())))
        turned_left = op.subtract(op.multiply(left, cosines), op.multiply(right, sines))
        turned_right = op.add(op.multiply(right, cosines), op.multiply(left, sines))
        return op.concat([turned_left, turned_right, *kept], -1)

    def _cosines_and_sines(self, rope: Rope) -> tuple[Node, Node]:
        """[B, 1, T, J] each."""
        if rope not in self._turns:
            positions = op.unsqueeze(op.convert(self._positions, "f32"), _integer([1, 3]))
            angles = op.multiply(positions, op.constant(np.array(rope.frequencies_J, dtype=np.float32)))
            self._turns[rope] = (op.cos(angles), op.sin(angles))
        return self._turns[rope]

    def _bias_of(self, block: BlockFacts) -> Node:
        """Zero where a token may look, the most negative number where it may not: [B, 1, T, S]."""
        if block.window not in self._seen:
            total = op.squeeze(op.gather(op.shape_of(self._mask), _integer([1]), _integer(0)), _integer(0))
            new = op.squeeze(op.gather(op.shape_of(self._ids), _integer([1]), _integer(0)), _integer(0))
            keys_S = op.range(_integer(0), total, _integer(1), "i64")
            queries_T1 = op.unsqueeze(op.range(op.subtract(total, new), total, _integer(1), "i64"), _integer(1))
            visible = op.less_equal(keys_S, queries_T1)
            real = op.unsqueeze(op.convert(self._mask, "boolean"), _integer([1, 2]))
            if block.window is None:
                bias = op.select(op.logical_and(visible, real), _float(0.0), _float(_HIDDEN))
            else:
                near = op.greater(keys_S, op.add(queries_T1, _integer(-block.window)))
                bias = _recognisable(near, visible, real)
            self._seen[block.window] = bias
        return self._seen[block.window]


def _recognisable(near: Node, visible: Node, real: Node) -> Node:
    """The bias of a sliding window, in the one shape that ``openvino_genai`` finds the window in.

    It puts an attention of its own in place of ours, and takes the window over only where it sees such a chain of
    nodes: without the repeated terms it would look back without end, silently.

    Source: OpenVINO, state_management_pattern.cpp, gpt_oss_sliding_window_pattern.
    """
    chain = op.bitwise_and(op.bitwise_and(visible, near), real)
    chain = op.bitwise_and(op.bitwise_and(visible, chain), visible)
    spread = op.broadcast(chain, op.shape_of(chain))
    bias = op.select(spread, _float(0.0), _float(_HIDDEN))
    end = op.gather(op.shape_of(bias), _integer([3]), _integer(0))
    return op.slice(bias, _integer([0]), end, _integer([1]), _integer([3]))


def _parameter(name: str, rank: int, type_: openvino.Type) -> Node:
    parameter = op.parameter(openvino.PartialShape([-1] * rank), type_)
    parameter.set_friendly_name(name)
    parameter.get_output_tensor(0).set_names({name})
    return parameter


def _integer(value: int | Sequence[int]) -> Node:
    return op.constant(np.asarray(value, dtype=np.int64))


def _float(value: float) -> Node:
    return op.constant(np.asarray(value, dtype=np.float32))
