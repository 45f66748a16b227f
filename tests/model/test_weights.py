"""Coded tensors come back from a quantized directory as they went in: 8 bits and 4, rows and groups, GPT-2's too."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from potstill.model.weights import QUANTIZED_FILE, CodedTensor, Weights, coded_entries, dequantize


def write(directory, entries, model_type="llama"):
    directory.mkdir(parents=True, exist_ok=True)
    save_file(entries, directory / QUANTIZED_FILE, metadata={"scheme": '{"scheme":"int4"}'})
    (directory / "config.json").write_text(json.dumps({"model_type": model_type, "tie_word_embeddings": True}))
    return Weights(directory)


def random_coded(bits, rows=6, columns=64, groups=2, seed=0):
    generator = np.random.default_rng(seed)
    low, high = (-8, 8) if bits == 4 else (-127, 128)
    codes = generator.integers(low, high, (rows, columns)).astype(np.int8)
    return CodedTensor(codes, generator.random((rows, groups)).astype(np.float16), bits)


@settings(max_examples=40, deadline=None)
@given(bits=st.sampled_from([4, 8]), rows=st.integers(1, 5), half=st.integers(1, 9), seed=st.integers(0, 99))
def test_codes_scales_and_bits_come_back_equal(tmp_path_factory, bits, rows, half, seed):
    coded = random_coded(bits, rows, 2 * half, 1, seed)
    weights = write(tmp_path_factory.mktemp("coded"), coded_entries("w.weight", coded))
    back = weights.read_coded("w.weight")
    np.testing.assert_array_equal(back.codes_OI, coded.codes_OI)
    np.testing.assert_array_equal(back.scales_OG, coded.scales_OG)
    assert (back.bits, back.codes_OI.dtype, weights.shape("w.weight")) == (bits, np.int8, coded.codes_OI.shape)


def test_four_bits_take_half_a_byte_on_disk_and_the_scheme_is_told(tmp_path):
    coded = random_coded(4)
    entries = coded_entries("w.weight", coded)
    assert entries["w.weight.codes"].shape == (6, 32)
    assert entries["w.weight.codes"].dtype == torch.uint8
    weights = write(tmp_path, entries)
    assert weights.scheme == {"scheme": "int4"}
    assert weights.bits("w.weight") == 4
    assert weights.num_parameters() == 6 * 64


@pytest.mark.parametrize("bits", [4, 8])
def test_linears_of_gpt2_are_read_inputs_first_though_their_codes_are_outputs_first(tmp_path, bits):
    coded = random_coded(bits)
    weights = write(tmp_path, coded_entries("transformer.h.0.attn.c_attn.weight", coded), "gpt2")
    assert weights.shape("transformer.h.0.attn.c_attn.weight") == (64, 6)
    read = weights.read("transformer.h.0.attn.c_attn.weight").numpy()
    np.testing.assert_array_equal(read, dequantize(coded).T)


def test_one_scale_per_row_multiplies_the_whole_row():
    coded = CodedTensor(np.array([[1, -2], [3, 4]], dtype=np.int8), np.array([[0.5], [2]], dtype=np.float16))
    np.testing.assert_array_equal(dequantize(coded), [[0.5, -1], [6, 8]])
