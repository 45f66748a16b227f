"""Put weights on llama.cpp's k-quant grids with its own code: 3- and 2-bit blocks of 256 columns.

The function is bound by hand, so before its first use it must give, on a fixed weight, the Q8_0 bits that the format's
definition gives, and k-quants that ``gguf`` reads back near to what went in.

Shapes: O rows (outputs) of a weight, I columns (inputs), N bytes of a row.
"""

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

import gguf
import numpy as np
from numpy.typing import NDArray

from potstill.core.errors import ResourceError
from potstill.model.weights import GgmlBlocks
from potstill.runtime.llama_abi import PINNED, Library, load_library

__all__ = ["K_QUANTS", "quantize_blocks"]

K_QUANTS: Mapping[str, gguf.GGMLQuantizationType] = MappingProxyType(
    {"q3_k": gguf.GGMLQuantizationType.Q3_K, "q2_k": gguf.GGMLQuantizationType.Q2_K}
)
_LARGEST_ERROR = {"q3_k": 0.20, "q2_k": 0.36}
"""Relative errors of the self-test's normal weights are 0.15 and 0.29."""


def quantize_blocks(
    weight_OI: NDArray[np.float32], grid: str, importance_I: NDArray[np.float32] | None = None
) -> GgmlBlocks:
    """The blocks that llama.cpp's quantizer makes of a finite weight.

    ``importance_I`` weighs the squared error of each column, as llama.cpp's importance matrix does.

    Shapes: weight_OI float32, I a multiple of 256.
    Raises: ResourceError: llama.cpp isn't installed, or its quantizer fails the self-test.
    """
    return GgmlBlocks(_chunk(_tested(), weight_OI, K_QUANTS[grid], importance_I), grid)


@cache
def _tested() -> Library:
    """The library, after its quantizer has shown that it is called rightly; once per process."""
    library = load_library()
    weight_OI = np.random.default_rng(0).normal(size=(4, 512)).astype(np.float32)
    expected_ON = gguf.quants.quantize(weight_OI, gguf.GGMLQuantizationType.Q8_0)
    right = np.array_equal(_chunk(library, weight_OI, gguf.GGMLQuantizationType.Q8_0, None), expected_ON)
    for grid, type_ in K_QUANTS.items():
        back_OI = gguf.quants.dequantize(_chunk(library, weight_OI, type_, None), type_)
        error = np.linalg.norm(back_OI - weight_OI) / np.linalg.norm(weight_OI)
        right = right and bool(error < _LARGEST_ERROR[grid])
    if not right:
        raise ResourceError(
            "its ggml_quantize_chunk gives other blocks than the format defines",
            where=str(library.path),
            next_step=f"pip install xllamacpp=={PINNED}",
        )
    return library


def _chunk(
    library: Library,
    weight_OI: NDArray[np.float32],
    type_: gguf.GGMLQuantizationType,
    importance_I: NDArray[np.float32] | None,
) -> NDArray[np.uint8]:
    source_OI = np.ascontiguousarray(weight_OI, dtype=np.float32)
    rows, columns = source_OI.shape
    block, block_bytes = gguf.GGML_QUANT_SIZES[type_]
    blocks_ON = np.zeros((rows, columns // block * block_bytes), dtype=np.uint8)
    weights_I = None if importance_I is None else np.ascontiguousarray(importance_I, dtype=np.float32)
    pointer = None if weights_I is None else weights_I.ctypes.data
    written = library.ggml_quantize_chunk(
        int(type_), source_OI.ctypes.data, blocks_ON.ctypes.data, 0, rows, columns, pointer
    )
    if written != blocks_ON.size:
        raise ResourceError(
            f"its ggml_quantize_chunk wrote {written:,} bytes where {blocks_ON.size:,} were expected",
            where=str(library.path),
            next_step=f"pip install xllamacpp=={PINNED}",
        )
    return blocks_ON
