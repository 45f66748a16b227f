"""How do codes and scales become a product in onnxruntime? Weights of every grid, and rows of a coded embedding.

Codes and scales stand in the file as they were chosen; scales in float16, cast by the graph. What depends on weights
alone is computed once by onnxruntime when it loads the file. Which node multiplies:

- 4 bits, and 8 bits with int8 activations: MatMulNBits, whose blocks are the groups;
- 8 bits with one scale per row and int8 activations: activations rounded per token, then MatMulInteger; not in the
  head, whose activations stay as they are in every W8A8 scheme;
- anything else: the weight in float32, made from codes and scales when the file is loaded, and MatMul.

Shapes: O rows of a weight, I columns, G groups of g columns, B rows of a batch, T tokens.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor

from potstill.export.onnx_graph import CONTRIBUTED, OnnxGraph
from potstill.model.weights import CODES, SCALES, CodedTensor

__all__ = ["Activations", "embedding", "linear"]

Activations = Literal["float32", "int8"]

_BLOCKS = (16, 32, 64, 128, 256)
_FLOAT_ACTIVATIONS, _INT8_ACTIVATIONS = 0, 4
"""MatMulNBits' accuracy_level."""


def linear(
    graph: OnnxGraph,
    name: str,
    inputs: str,
    weight: Tensor | CodedTensor,
    activations: Activations,
    *,
    is_head: bool = False,
) -> str:
    """Inputs [B, T, I] times the transposed weight: [B, T, O]."""
    if isinstance(weight, Tensor):
        return graph.node("MatMul", inputs, _transposed_floats(graph, name, weight))
    if _in_blocks(weight) and (weight.bits == 4 or activations == "int8"):
        rows, columns = weight.codes_OI.shape
        return graph.node(
            "MatMulNBits",
            inputs,
            graph.weight(name + CODES, _blocks(weight)),
            _scales(graph, name, weight),
            domain=CONTRIBUTED,
            N=rows,
            K=columns,
            bits=weight.bits,
            block_size=columns // weight.scales_OG.shape[1],
            accuracy_level=_INT8_ACTIVATIONS if activations == "int8" else _FLOAT_ACTIVATIONS,
        )
    if weight.per_row and activations == "int8" and not is_head:
        return _integer_product(graph, name, inputs, weight)
    rows = graph.node("Transpose", _dequantized(graph, name, weight), perm=[1, 0])
    return graph.node("MatMul", inputs, rows)


def embedding(graph: OnnxGraph, name: str, ids: str, table: Tensor | CodedTensor) -> str:
    """The rows of a table for ids [B, T]: [B, T, I]. The table may be used by ``linear`` under the same name."""
    if isinstance(table, Tensor):
        return _as_float(graph, graph.node("Gather", graph.weight(name, table), ids))
    scales_BTG1 = graph.node("Unsqueeze", graph.node("Gather", _scales(graph, name, table), ids), graph.constant([-1]))
    codes = graph.node("Gather", graph.weight(name + CODES, _stored_codes(table)), ids)
    groups = table.scales_OG.shape[1]
    codes_BTGg = _unpacked(graph, codes, table, [0, 0, groups, -1])
    return graph.node("Reshape", graph.node("Mul", codes_BTGg, scales_BTG1), graph.constant([0, 0, -1]))


def _in_blocks(coded: CodedTensor) -> bool:
    group, rest = divmod(coded.codes_OI.shape[1], coded.scales_OG.shape[1])
    return not coded.per_row and not rest and group in _BLOCKS


def _stored_codes(coded: CodedTensor) -> NDArray[np.uint8] | NDArray[np.int8]:
    """How the codes stand in the file: int8 [O, I] where no MatMulNBits reads them, else its blocks."""
    return coded.codes_OI if _is_plain(coded) else _blocks(coded)


def _is_plain(coded: CodedTensor) -> bool:
    return coded.bits == 8 and not _in_blocks(coded)


def _blocks(coded: CodedTensor) -> NDArray[np.uint8]:
    """Codes from zero up, as MatMulNBits has them: uint8 [O, G, bytes of a group], low half first for 4 bits."""
    rows, groups = coded.scales_OG.shape
    zero = 1 << (coded.bits - 1)
    shifted_OI = (coded.codes_OI.astype(np.int16) + zero).astype(np.uint8)
    if coded.bits == 4:
        shifted_OI = shifted_OI[:, 0::2] | (shifted_OI[:, 1::2] << np.uint8(4))
    return shifted_OI.reshape(rows, groups, -1)


def _scales(graph: OnnxGraph, name: str, coded: CodedTensor) -> str:
    """float16 in the file, float32 [O, G] in the graph."""
    return graph.node("Cast", graph.weight(name + SCALES, coded.scales_OG), to=TensorProto.FLOAT)


def _unpacked(graph: OnnxGraph, codes: str, coded: CodedTensor, shape: list[int]) -> str:
    """Codes as they stand in the file as float32 from below zero to above, in a shape that ends in G, g."""
    if _is_plain(coded):
        return graph.node("Reshape", graph.node("Cast", codes, to=TensorProto.FLOAT), graph.constant(shape))
    if coded.bits == 4:
        low = graph.node("BitwiseAnd", codes, graph.constant(15, np.uint8))
        high = graph.node("BitShift", codes, graph.constant(4, np.uint8), direction="RIGHT")
        last = graph.constant([-1])
        halves = (graph.node("Unsqueeze", half, last) for half in (low, high))
        codes = graph.node("Reshape", graph.node("Concat", *halves, axis=-1), graph.constant(shape))
    floats = graph.node("Cast", codes, to=TensorProto.FLOAT)
    return graph.node("Sub", floats, graph.constant(float(1 << (coded.bits - 1)), np.float32))


def _dequantized(graph: OnnxGraph, name: str, coded: CodedTensor) -> str:
    """The weight [O, I] in float32."""
    rows, groups = coded.scales_OG.shape
    codes = graph.weight(name + CODES, _stored_codes(coded))
    codes_OGg = _unpacked(graph, codes, coded, [rows, groups, -1])
    scales_OG1 = graph.node("Unsqueeze", _scales(graph, name, coded), graph.constant([-1]))
    return graph.node("Reshape", graph.node("Mul", codes_OGg, scales_OG1), graph.constant([rows, -1]))


def _integer_product(graph: OnnxGraph, name: str, inputs: str, coded: CodedTensor) -> str:
    """W8A8: every token's activations on int8 by their own largest, the product in int32, scales afterwards."""
    codes_IO = graph.node("Transpose", graph.weight(name + CODES, _stored_codes(coded)), perm=[1, 0])
    scales_O = graph.node("Reshape", _scales(graph, name, coded), graph.constant([-1]))
    last = graph.constant([-1])
    largest_BT1 = graph.node("ReduceMax", graph.node("Abs", inputs), last, keepdims=1)
    step_BT1 = graph.node("Div", largest_BT1, graph.constant(127.0, np.float32))
    safe_BT1 = graph.node("Max", step_BT1, graph.constant(float(np.finfo(np.float32).tiny), np.float32))
    rounded = graph.node("Round", graph.node("Div", inputs, safe_BT1))
    sums = graph.node("MatMulInteger", graph.node("Cast", rounded, to=TensorProto.INT8), codes_IO)
    scaled = graph.node("Mul", graph.node("Cast", sums, to=TensorProto.FLOAT), safe_BT1)
    return graph.node("Mul", scaled, scales_O)


def _transposed_floats(graph: OnnxGraph, name: str, weight: Tensor) -> str:
    """A float weight as [I, O]; one that is an embedding too stays [O, I] in the file."""
    if graph.has_weight(name):
        return graph.node("Transpose", _as_float(graph, name, weight), perm=[1, 0])
    return _as_float(graph, graph.weight(name, weight.T), weight)


def _as_float(graph: OnnxGraph, value: str, weight: Tensor | None = None) -> str:
    if weight is not None and weight.dtype.itemsize == 4:
        return value
    return graph.node("Cast", value, to=TensorProto.FLOAT)
