"""int8 codes and scales are llama.cpp's, bit for bit, and nothing becomes infinite on the way."""

import ctypes

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from potstill.core.errors import InputError
from potstill.quantize.grids import dequantize, quantize_int8, to_float16
from potstill.runtime.llama_abi import load_library

LARGEST_SCALE = 65504.0
NO_RECIPROCAL = np.float32(2.0**-128)
"""Up to here a float32 scale's reciprocal overflows, and the reference leaves the codes open."""


def packed(coded):
    """Codes and scales in GGUF's byte order, written down independently of the exporter."""
    rows, groups = coded.scales_OG.shape
    blocks = np.empty((rows, groups, 34), dtype=np.uint8)
    for row in range(rows):
        for group in range(groups):
            blocks[row, group, :2] = np.frombuffer(coded.scales_OG[row, group].tobytes(), dtype=np.uint8)
            codes = coded.codes_OI[row, group * 32 : group * 32 + 32]
            blocks[row, group, 2:] = np.frombuffer(codes.tobytes(), dtype=np.uint8)
    return blocks.reshape(rows, -1)


def by_gguf(weight):
    return gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q8_0).reshape(len(weight), -1)


def by_llama_cpp(weight):
    """What ggml_quantize_chunk of the llama.cpp that is installed writes."""
    quantize = ctypes.CDLL(str(load_library().path)).ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    rows, columns = weight.shape
    weight = np.ascontiguousarray(weight)
    blocks = np.zeros((rows, columns // 32 * 34), dtype=np.uint8)
    written = quantize(8, weight.ctypes.data, blocks.ctypes.data, 0, rows, columns, None)
    assert written == blocks.size
    return blocks


@pytest.mark.parametrize("spread", [1e-12, 1e-4, 0.02, 1.0, 3e4, 1e6])
def test_random_weights_give_the_bits_of_gguf_and_of_llama_cpp(spread):
    weight = (np.random.default_rng(0).normal(size=(64, 256)) * spread).astype(np.float32)
    ours = packed(quantize_int8(weight))
    np.testing.assert_array_equal(ours, by_gguf(weight))
    np.testing.assert_array_equal(ours, by_llama_cpp(weight))


def test_ties_are_rounded_away_from_zero_like_the_reference():
    """With a largest weight of 127 the scale is 1, so every half-integer is a tie."""
    weight = np.concatenate([[127.0], np.arange(-15, 16) + 0.5]).astype(np.float32)[None, :]
    coded = quantize_int8(weight)
    assert coded.codes_OI[0, 1:].tolist() == [int(np.copysign(abs(tie) + 0.5, tie)) for tie in weight[0, 1:]]
    np.testing.assert_array_equal(packed(coded), by_llama_cpp(weight))


def test_groups_of_zeros_have_zero_codes_and_scale():
    coded = quantize_int8(np.zeros((2, 64), dtype=np.float32))
    assert not coded.codes_OI.any()
    assert not coded.scales_OG.any()
    assert coded.scales_OG.shape == (2, 2)


@settings(max_examples=300, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        (2, 64),
        elements=st.floats(-LARGEST_SCALE * 127, LARGEST_SCALE * 127, width=32) | st.floats(-1, 1, width=32),
    )
)
def test_any_weights_give_the_bits_of_gguf_and_stay_within_the_bound(weight):
    scales = np.abs(weight.reshape(2, 2, 32)).max(-1) / np.float32(127)
    coded = quantize_int8(weight)
    if ((scales == 0) | (scales > NO_RECIPROCAL)).all():
        np.testing.assert_array_equal(packed(coded), by_gguf(weight))
        np.testing.assert_array_equal(packed(coded), by_llama_cpp(weight))
    scale16 = np.repeat(coded.scales_OG.astype(np.float64), 32, axis=1)
    scale = np.repeat(np.abs(weight.reshape(2, 2, 32).astype(np.float64)).max(-1) / 127, 32, axis=1)
    error = np.abs(dequantize(coded) - weight.astype(np.float64))
    assert (error <= 0.5001 * scale + 127 * np.abs(scale - scale16)).all()


def test_dequantized_numbers_are_those_that_gguf_reads_back():
    weight = np.random.default_rng(1).normal(size=(8, 96)).astype(np.float32)
    coded = quantize_int8(weight)
    theirs = gguf.quants.dequantize(by_gguf(weight), gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(dequantize(coded), theirs)


@pytest.mark.parametrize("quantize", [quantize_int8, to_float16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_name_and_place(quantize, value):
    weight = np.zeros((2, 32), dtype=np.float32)
    weight[1, 7] = value
    with pytest.raises(InputError, match=r"lm_head: 1 weights are NaN or infinite, the first at \(1, 7\)"):
        quantize(weight, name="lm_head")


def test_what_float16_cannot_hold_is_refused_and_never_becomes_infinite():
    weight = np.full((1, 32), 65519.0, dtype=np.float32)
    assert to_float16(weight)[0, 0] == np.float16(65504)
    with pytest.raises(InputError, match="more than float16 can hold"):
        to_float16(np.nextafter(weight, np.float32(np.inf)) + 1, name="w")
    assert np.isfinite(quantize_int8(np.full((1, 32), LARGEST_SCALE * 127, dtype=np.float32)).scales_OG).all()
    with pytest.raises(InputError, match="more than an int8 group's float16 scale can hold"):
        quantize_int8(np.full((1, 32), 1e7, dtype=np.float32), name="w")
