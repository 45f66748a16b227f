"""How is an ONNX graph put together, node by node, so that the same model gives the same bytes?"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor

from potstill.core import interrupt

__all__ = ["CONTRIBUTED", "EXTERNAL_FROM_BYTES", "OPSET", "OnnxGraph"]

OPSET = 21
CONTRIBUTED = "com.microsoft"
_IR_VERSION = 10
EXTERNAL_FROM_BYTES = 1 << 30
"""From this many bytes of weights on, they stand in a file of their own: a protobuf message ends at 2 GiB."""

_ALIGNMENT = 64
_TYPES: Mapping[torch.dtype, int] = MappingProxyType(
    {
        torch.float32: TensorProto.FLOAT,
        torch.float16: TensorProto.FLOAT16,
        torch.bfloat16: TensorProto.BFLOAT16,
        torch.int8: TensorProto.INT8,
        torch.uint8: TensorProto.UINT8,
        torch.int64: TensorProto.INT64,
    }
)


class OnnxGraph:
    """Nodes and weights in the order in which they are added; a value is known by its name.

    ``external`` is an open file that weights go to instead of the model, ``external_name`` what it will be called.
    """

    def __init__(self, external: IO[bytes] | None = None, external_name: str = "") -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._external, self._external_name = external, external_name
        self._fresh = (f"v{number}" for number in _naturals())

    def input(self, name: str, type_: int, shape: Sequence[int | str]) -> str:
        """Declare an input; names in its shape are dimensions that may change."""
        self._inputs.append(helper.make_tensor_value_info(name, type_, list(shape)))
        return name

    def output(self, value: str, name: str, type_: int, shape: Sequence[int | str]) -> None:
        """Give a value out under a name of its own."""
        if value != name:
            self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, type_, list(shape)))

    def node(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:  # noqa: ANN401 - ONNX's types
        """Add a node with one output; the name of that."""
        (name,) = self.nodes(kind, *inputs, outputs=1, domain=domain, **attributes)
        return name

    def nodes(
        self,
        kind: str,
        *inputs: str,
        outputs: int | Sequence[str],
        domain: str = "",
        **attributes: Any,  # noqa: ANN401 - ONNX's types
    ) -> list[str]:
        """Add a node with several outputs, whose names may be chosen."""
        names = [next(self._fresh) for _ in range(outputs)] if isinstance(outputs, int) else list(outputs)
        self._nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        return names

    def weight(self, name: str, values: Tensor | NDArray[Any]) -> str:
        """A tensor of the model; under a name that is there already, that one."""
        interrupt.check()
        if name not in self._weights:
            tensor = (values if isinstance(values, Tensor) else torch.from_numpy(values)).contiguous()
            proto = TensorProto(name=name, data_type=_TYPES[tensor.dtype], dims=tensor.shape)
            raw = tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
            self._place(proto, raw)
            self._weights[name] = proto
        return name

    def has_weight(self, name: str) -> bool:
        """Whether a tensor of this name was added."""
        return name in self._weights

    def default(self, name: str, value: int) -> str:
        """An input that callers may leave out."""
        self.input(name, TensorProto.INT64, [1])
        self._weights[name] = helper.make_tensor(name, TensorProto.INT64, [1], [value])
        return name

    def constant(self, value: float | Sequence[int] | NDArray[Any], dtype: type[np.generic] = np.int64) -> str:
        """A small constant; equal ones share a name."""
        array = np.asarray(value, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"c{len(self._constants)}"
            self._weights[name] = onnx.numpy_helper.from_array(array, name)
            self._constants[key] = name
        return self._constants[key]

    def write(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Serialise the model."""
        graph = helper.make_graph(self._nodes, "decoder", self._inputs, self._outputs, list(self._weights.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIBUTED, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="potstill")
        helper.set_model_props(model, dict(sorted(metadata.items())))
        path.write_bytes(model.SerializeToString(deterministic=True))

    def _place(self, proto: TensorProto, raw: bytes) -> None:
        if self._external is None:
            proto.raw_data = raw
            return
        self._external.write(bytes(-self._external.tell() % _ALIGNMENT))
        where = {"location": self._external_name, "offset": str(self._external.tell()), "length": str(len(raw))}
        self._external.write(raw)
        proto.data_location = TensorProto.EXTERNAL
        for key, value in where.items():
            proto.external_data.add(key=key, value=value)


def _naturals() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1
