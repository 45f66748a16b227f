"""int8 and int4 codes and scales are llama.cpp's, bit for bit, and nothing becomes infinite on the way."""

import ctypes

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from potstill.core.errors import InputError
from potstill.quantize.grids import dequantize, quantize_int4, quantize_int8, to_bfloat16, to_float16
from potstill.runtime.ggml_grids import quantize_blocks
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


def packed_int4(coded):
    """Q4_0: codes plus 8, column j in the low half of a byte and column j + 16 in the high half."""
    rows, groups = coded.scales_OG.shape
    blocks = np.empty((rows, groups, 18), dtype=np.uint8)
    for row in range(rows):
        for group in range(groups):
            codes = [int(code) + 8 for code in coded.codes_OI[row, group * 32 : group * 32 + 32]]
            scale = coded.scales_OG[row, group].tobytes()
            blocks[row, group] = [*scale, *(codes[j] + 16 * codes[j + 16] for j in range(16))]
    return blocks.reshape(rows, -1)


def by_llama_cpp(weight, type_=8, block_bytes=34):
    """What ggml_quantize_chunk of the llama.cpp that is installed writes."""
    quantize = ctypes.CDLL(str(load_library().path)).ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    rows, columns = weight.shape
    weight = np.ascontiguousarray(weight)
    blocks = np.zeros((rows, columns // 32 * block_bytes), dtype=np.uint8)
    written = quantize(type_, weight.ctypes.data, blocks.ctypes.data, 0, rows, columns, None)
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


@pytest.mark.parametrize("quantize", [quantize_int8, quantize_int4, to_float16, to_bfloat16])
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


@pytest.mark.parametrize("spread", [1e-12, 1e-4, 0.02, 1.0, 3e4])
def test_random_weights_give_the_int4_bits_of_gguf_and_of_llama_cpp(spread):
    weight = (np.random.default_rng(0).normal(size=(64, 256)) * spread).astype(np.float32)
    ours = packed_int4(quantize_int4(weight))
    theirs = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q4_0).reshape(len(weight), -1)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(ours, by_llama_cpp(weight, 2, 18))


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        (2, 64),
        elements=st.floats(-LARGEST_SCALE * 8, LARGEST_SCALE * 8, width=32)
        | st.floats(-1, 1, width=32)
        | st.integers(-8, 8).map(float),
    )
)
def test_any_weights_give_the_int4_bits_of_gguf_and_stay_within_a_step(weight):
    coded = quantize_int4(weight)
    extremes = np.abs(weight.reshape(2, 2, 32)).max(-1)
    if ((extremes == 0) | (extremes / 8 > NO_RECIPROCAL)).all():
        theirs = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q4_0).reshape(2, -1)
        np.testing.assert_array_equal(packed_int4(coded), theirs)
    assert coded.codes_OI.min() >= -8
    assert coded.codes_OI.max() <= 7
    scale = np.repeat(extremes.astype(np.float64) / 8, 32, axis=1)
    scale16 = np.repeat(np.abs(coded.scales_OG.astype(np.float64)), 32, axis=1)
    error = np.abs(dequantize(coded) - weight.astype(np.float64))
    assert (error <= 1.0001 * scale + 8 * np.abs(scale - scale16)).all()


def test_the_weight_of_largest_magnitude_sits_on_minus_eight_whatever_its_sign():
    weight = np.zeros((2, 128), dtype=np.float32)
    weight[0, 77], weight[1, 3] = 4.0, -4.0
    coded = quantize_int4(weight, 128)
    assert coded.scales_OG.tolist() == [[-0.5], [0.5]]
    assert (coded.codes_OI[0, 77], coded.codes_OI[1, 3]) == (-8, -8)
    np.testing.assert_array_equal(dequantize(coded), weight)


@pytest.mark.parametrize("quantize", [quantize_int8, quantize_int4])
@pytest.mark.parametrize("columns", [5, 172])
def test_one_group_of_the_whole_row_is_the_group_of_so_many_columns(quantize, columns):
    weight = np.random.default_rng(3).normal(size=(7, columns)).astype(np.float32)
    whole, group = quantize(weight, None), quantize(weight, columns)
    assert whole.scales_OG.shape == (7, 1)
    np.testing.assert_array_equal(whole.codes_OI, group.codes_OI)
    np.testing.assert_array_equal(whole.scales_OG, group.scales_OG)


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float32, (3, 8), elements=st.floats(-(2.0**127), 2.0**127, width=32)))
def test_bfloat16_is_gguf_s_and_torch_s(weight):
    ours = to_bfloat16(weight)
    theirs = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.BF16).view(np.uint16)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(ours, torch.from_numpy(weight).bfloat16().view(torch.uint16).numpy())


def test_what_bfloat16_cannot_hold_is_refused():
    with pytest.raises(InputError, match="more than bfloat16 can hold"):
        to_bfloat16(np.full((1, 2), np.finfo(np.float32).max, dtype=np.float32), name="w")


@pytest.mark.parametrize("grid", ["q3_k", "q2_k"])
def test_importance_moves_the_error_of_k_quants_to_columns_that_matter_less(grid):
    weight = np.random.default_rng(5).normal(size=(32, 512)).astype(np.float32)
    importance = np.where(np.arange(512) % 2, 1.0, 100.0).astype(np.float32)
    plain, weighed = (quantize_blocks(weight, grid, given).dequantize() for given in (None, importance))
    error = [float((importance * np.square(back - weight)).sum()) for back in (plain, weighed)]
    assert error[1] < 0.8 * error[0]
