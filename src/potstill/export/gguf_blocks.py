"""How do codes and scales lie in GGUF's blocks? Packing and its inverse, bit for bit.

Shapes: O rows (outputs) of a weight, I columns (inputs), G groups of 32 columns, N bytes of a row.
"""

import numpy as np
from numpy.typing import NDArray

from potstill.model.weights import CodedTensor

__all__ = ["pack_blocks", "pack_q4_0", "pack_q8_0", "unpack_q4_0", "unpack_q8_0"]

_GROUP = 32


def pack_blocks(coded: CodedTensor) -> NDArray[np.uint8]:
    """Q8_0 or Q4_0 blocks, by the bits; a scale that several groups of 32 columns share is repeated for each.

    Returns: uint8 [O, G * 34] or [O, G * 18].
    """
    groups = coded.codes_OI.shape[1] // _GROUP
    scales_OG = np.repeat(coded.scales_OG, groups // coded.scales_OG.shape[1], axis=1)
    whole = CodedTensor(coded.codes_OI, scales_OG, coded.bits)
    return pack_q8_0(whole) if coded.bits == 8 else pack_q4_0(whole)


def pack_q8_0(coded: CodedTensor) -> NDArray[np.uint8]:
    """Blocks of a float16 scale and 32 codes, as GGUF lays Q8_0 out.

    Returns: uint8 [O, G * 34].
    """
    rows, groups = coded.scales_OG.shape
    codes_OGb = np.ascontiguousarray(coded.codes_OI).view(np.uint8).reshape(rows, groups, _GROUP)
    return _with_scales(coded, codes_OGb)


def unpack_q8_0(blocks_ON: NDArray[np.uint8]) -> CodedTensor:
    """The codes and scales of packed blocks: the inverse of ``pack_q8_0``."""
    scales_OG, codes_OGb = _apart(blocks_ON, _GROUP)
    return CodedTensor(codes_OGb.view(np.int8).reshape(len(blocks_ON), -1), scales_OG)


def pack_q4_0(coded: CodedTensor) -> NDArray[np.uint8]:
    """Blocks of a float16 scale and 16 bytes, as GGUF lays Q4_0 out: codes plus 8, column j low and j + 16 high.

    Returns: uint8 [O, G * 18].
    """
    rows, groups = coded.scales_OG.shape
    shifted_OGb = (coded.codes_OI + 8).astype(np.uint8).reshape(rows, groups, _GROUP)
    return _with_scales(coded, shifted_OGb[:, :, :16] | (shifted_OGb[:, :, 16:] << np.uint8(4)))


def unpack_q4_0(blocks_ON: NDArray[np.uint8]) -> CodedTensor:
    """The codes and scales of packed blocks: the inverse of ``pack_q4_0``."""
    scales_OG, halves_OGb = _apart(blocks_ON, _GROUP // 2)
    codes_OGb = np.concatenate([halves_OGb & 15, halves_OGb >> 4], axis=2).astype(np.int8) - np.int8(8)
    return CodedTensor(codes_OGb.reshape(len(blocks_ON), -1), scales_OG, bits=4)


def _with_scales(coded: CodedTensor, codes_OGb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    rows, groups = coded.scales_OG.shape
    scales_OGb = np.ascontiguousarray(coded.scales_OG).view(np.uint8).reshape(rows, groups, 2)
    return np.concatenate([scales_OGb, codes_OGb], axis=2).reshape(rows, -1)


def _apart(blocks_ON: NDArray[np.uint8], num_code_bytes: int) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    blocks_OGb = blocks_ON.reshape(blocks_ON.shape[0], -1, 2 + num_code_bytes)
    scales_OG = np.ascontiguousarray(blocks_OGb[:, :, :2]).view(np.float16).reshape(len(blocks_ON), -1)
    return scales_OG, np.ascontiguousarray(blocks_OGb[:, :, 2:])
