"""How do codes and scales stand in an OpenVINO model? As constants that the runtime's compressed products recognise.

A coded weight is a constant of i4 or i8 codes, converted to float16, times a constant of float16 scales, converted to
float32: what NNCF writes. The CPU plugin multiplies in float32, so nothing is rounded on the way.

Shapes: O rows of a weight, I columns, G groups of g columns.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import openvino
import torch
from numpy.typing import NDArray
from openvino import opset15 as op
from torch import Tensor

from potstill.export.parts import Matrix
from potstill.model.weights import CODES, SCALES, CodedTensor

__all__ = ["WeightStore"]

_TYPES: Mapping[torch.dtype, openvino.Type] = MappingProxyType(
    {
        torch.float32: openvino.Type.f32,
        torch.float16: openvino.Type.f16,
        torch.bfloat16: openvino.Type.bf16,
    }
)


class WeightStore:
    """Constants by name; a weight that is asked for twice is one constant."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._floats: dict[str, Any] = {}

    def floats(self, name: str, weight: Matrix) -> Any:  # noqa: ANN401 - OpenVINO's nodes
        """A matrix [O, I] as float32 in the graph, in the file as it is."""
        if name not in self._floats:
            if isinstance(weight, CodedTensor):
                self._floats[name] = self._dequantized(name, weight)
            else:
                self._floats[name] = self._widened(name, weight)
        return self._floats[name]

    def vector(self, name: str, values: NDArray[np.float32]) -> Any:  # noqa: ANN401 - OpenVINO's nodes
        """A vector in float32."""
        return self._constant(name, openvino.Tensor(np.ascontiguousarray(values)))

    def _widened(self, name: str, weight: Tensor) -> Any:  # noqa: ANN401 - OpenVINO's nodes
        values = weight.contiguous()
        raw = values.view(torch.uint8).numpy()
        tensor = openvino.Tensor(raw, openvino.Shape(list(values.shape)), _TYPES[values.dtype])
        constant = self._constant(name, tensor)
        return constant if values.dtype == torch.float32 else op.convert(constant, "f32")

    def _dequantized(self, name: str, coded: CodedTensor) -> Any:  # noqa: ANN401 - OpenVINO's nodes
        rows, columns = coded.codes_OI.shape
        groups = coded.scales_OG.shape[1]
        shape = [rows, columns] if groups == 1 else [rows, groups, columns // groups]
        if coded.bits == 4:
            packed = _packed(coded.codes_OI)
            tensor = openvino.Tensor(packed, openvino.Shape(shape), openvino.Type.i4)
        else:
            tensor = openvino.Tensor(np.ascontiguousarray(coded.codes_OI.reshape(shape)))
        codes = op.convert(self._constant(name + CODES, tensor), "f16")
        scales = np.ascontiguousarray(coded.scales_OG.reshape(*shape[:-1], 1))
        scaled = op.multiply(codes, self._constant(name + SCALES, openvino.Tensor(scales)))
        if groups > 1:
            scaled = op.reshape(scaled, op.constant(np.array([rows, columns], dtype=np.int64)), special_zero=False)
        return op.convert(scaled, "f32")

    def _constant(self, name: str, tensor: openvino.Tensor) -> Any:  # noqa: ANN401 - OpenVINO's nodes
        constant = openvino.op.Constant(tensor, shared_memory=False)
        constant.set_friendly_name(name)
        self.names.add(name)
        return constant


def _packed(codes_OI: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Two codes of 4 bits to a byte, in two's complement, the first in the low half."""
    flat = codes_OI.reshape(-1).view(np.uint8) & 15
    return (flat[0::2] | (flat[1::2] << 4)).astype(np.uint8)
