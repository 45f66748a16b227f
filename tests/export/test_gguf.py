"""GGUF files: exact codes, one spelling of the bytes, sizes by dtype, and refusals that say why."""

import json

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from safetensors.numpy import load_file, save_file
from transformers import OPTConfig, OPTForCausalLM

from potstill.core.durable import sha256_of_file
from potstill.core.errors import InputError
from potstill.core.trace import Trace, num_fallbacks, texts_told
from potstill.export.gguf import export_gguf
from potstill.export.gguf_blocks import pack_q8_0, unpack_q4_0, unpack_q8_0
from potstill.export.llama_layout import gguf_facts, gguf_name, row_order
from potstill.export.settings import GgufExport
from potstill.export.stage import bytes_by_dtype, export_variants
from potstill.model.weights import CodedTensor, Weights
from potstill.quantize.grids import quantize_int8
from potstill.quantize.settings import Float16, Int4, Int8, Int8Channel
from potstill.quantize.stage import quantize_model


@pytest.fixture
def events():
    return []


@pytest.fixture
def trace(events):
    return Trace(listeners=[events.append])


@pytest.fixture
def source(make_llama):
    return make_llama("untied-gqa", tie_word_embeddings=False, num_key_value_heads=2)


def tensors_of(path):
    return {tensor.name: tensor for tensor in GGUFReader(path).tensors}


def undo_permutation(rows, heads):
    """Rows 2j and 2j + 1 of a head go back to j and j + half."""
    per_head = rows.reshape(heads, -1, *rows.shape[1:])
    return np.concatenate([per_head[:, 0::2], per_head[:, 1::2]], axis=1).reshape(rows.shape)


def test_codes_and_scales_of_a_quantized_directory_are_written_bit_for_bit(source, tmp_path, trace):
    quantize_model(Int8(), source, tmp_path / "int8", trace)
    export_gguf(tmp_path / "int8", tmp_path / "int8.gguf", "int8", trace)
    stored = load_file(tmp_path / "int8" / "quantized.safetensors")
    written = tensors_of(tmp_path / "int8.gguf")
    facts = gguf_facts(json.loads((source / "config.json").read_text()), "")
    coded = [name.removesuffix(".codes") for name in stored if name.endswith(".codes")]
    assert len(coded) == 3 * 7 + 2
    for name in coded:
        tensor = written[gguf_name(name, facts)]
        assert tensor.tensor_type == GGMLQuantizationType.Q8_0
        back = unpack_q8_0(tensor.data)
        codes, scales = back.codes_OI, back.scales_OG
        if "q_proj" in name or "k_proj" in name:
            heads = 4 if "q_proj" in name else 2
            codes, scales = undo_permutation(codes, heads), undo_permutation(scales, heads)
        np.testing.assert_array_equal(codes, stored[name + ".codes"])
        np.testing.assert_array_equal(scales, stored[name + ".scales"])


@pytest.mark.parametrize(("dtype", "kind"), [("float32", "F32"), ("float16", "F16"), ("int8", "Q8_0")])
def test_matrices_take_the_dtype_and_norms_stay_float32(source, tmp_path, trace, dtype, kind):
    export_gguf(source, tmp_path / "model.gguf", dtype, trace)
    for tensor in tensors_of(tmp_path / "model.gguf").values():
        assert tensor.tensor_type.name == (kind if len(tensor.shape) == 2 else "F32"), tensor.name


def test_int8_from_a_float32_directory_is_what_quantizing_first_gives(source, tmp_path, trace):
    quantize_model(Int8(), source, tmp_path / "int8", trace)
    export_gguf(tmp_path / "int8", tmp_path / "codes.gguf", "int8", trace)
    export_gguf(source, tmp_path / "floats.gguf", "int8", trace)
    assert sha256_of_file(tmp_path / "codes.gguf") == sha256_of_file(tmp_path / "floats.gguf")


def test_a_tied_embedding_is_stored_once(make_llama, tmp_path, trace):
    export_gguf(make_llama("tied"), tmp_path / "tied.gguf", "float32", trace)
    names = set(tensors_of(tmp_path / "tied.gguf"))
    assert "token_embd.weight" in names
    assert "output.weight" not in names


def test_the_same_model_gives_the_same_bytes_whatever_the_file_is_called(source, tmp_path, trace):
    for name in ("a.gguf", "b.gguf"):
        export_gguf(source, tmp_path / name, "int8", trace)
    assert sha256_of_file(tmp_path / "a.gguf") == sha256_of_file(tmp_path / "b.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "b.gguf"]


def test_the_header_says_the_shape_and_the_tokenizer(source, tmp_path, trace):
    export_gguf(source, tmp_path / "m.gguf", "float16", trace)
    fields = {name: field.contents() for name, field in GGUFReader(tmp_path / "m.gguf").fields.items()}
    assert fields["general.architecture"] == "llama"
    assert fields["general.file_type"] == 1
    assert fields["llama.attention.head_count"] == 4
    assert fields["llama.attention.head_count_kv"] == 2
    assert fields["llama.rope.dimension_count"] == 32
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    assert fields["tokenizer.ggml.bos_token_id"] == 0
    assert fields["tokenizer.ggml.add_bos_token"] is True
    assert len(fields["tokenizer.ggml.tokens"]) == 400


def test_columns_that_are_no_multiple_of_32_are_float16_and_the_trace_says_so(make_llama, tmp_path, trace, events):
    source = make_llama("odd", intermediate_size=100)
    quantize_model(Int8(), source, tmp_path / "int8", Trace())
    for given, times in ((source, 3), (tmp_path / "int8", 0)):
        events.clear()
        export_gguf(given, tmp_path / "odd.gguf", "int8", trace)
        written = tensors_of(tmp_path / "odd.gguf")
        assert written["blk.0.ffn_down.weight"].tensor_type == GGMLQuantizationType.F16
        assert written["blk.0.ffn_up.weight"].tensor_type == GGMLQuantizationType.Q8_0
        assert sum(event["kind"] == "fallback" for event in events) == times, "told once, by who decides it"


def test_a_w8a8_model_with_columns_of_172_tells_every_way_in_which_llama_cpp_differs(make_llama, tmp_path, events):
    """A row of 172 codes has no place in blocks of 32: float16; and activations are rounded 32 at a time there."""
    quantize_model(Int8Channel(), make_llama("odd172", intermediate_size=172), tmp_path / "made", Trace())
    export_variants([GgufExport()], {"a-int8-channel": tmp_path / "made"}, tmp_path, Trace(listeners=[events.append]))
    told = texts_told(events, "fallback")
    assert len(told) == 3 + 1
    name = "model.layers.0.mlp.down_proj.weight"
    assert f"a-int8-channel.gguf: {name} has 172 columns, no multiple of 32: float16, not Q8_0" in told
    assert "a-int8-channel.gguf: activations are rounded to int8 with a scale per 32 columns" in told[-1]
    assert num_fallbacks(events, "a-int8-channel", "gguf") == 4
    assert num_fallbacks(events, "a-int8-channel", "onnx") == 0


def test_packing_is_undone_by_unpacking():
    weight = np.random.default_rng(0).normal(size=(6, 96)).astype(np.float32)
    coded = quantize_int8(weight)
    back = unpack_q8_0(pack_q8_0(coded))
    np.testing.assert_array_equal(back.codes_OI, coded.codes_OI)
    np.testing.assert_array_equal(back.scales_OG, coded.scales_OG)
    assert isinstance(back, CodedTensor)


def test_only_rows_of_queries_and_keys_are_moved(source):
    facts = gguf_facts(json.loads((source / "config.json").read_text()), "")
    moved = row_order("k", facts)
    assert moved[:4].tolist() == [0, 16, 1, 17]
    np.testing.assert_array_equal(undo_permutation(moved, 2), np.arange(64))
    assert len(row_order("q", facts)) == 128
    assert row_order("v", facts) is None


def test_every_variant_becomes_a_file_and_its_bytes_a_row(source, tmp_path, trace, events):
    quantize_model(Float16(), source, tmp_path / "q" / "student-float16", trace)
    quantize_model(Int8(), source, tmp_path / "q" / "student-int8", trace)
    out = tmp_path / "out"
    out.mkdir()
    (out / ".student-int8.gguf.01234567.partial").write_bytes(b"GG")
    variants = {"student-float32": source} | {path.name: path for path in sorted((tmp_path / "q").iterdir())}
    export_variants([GgufExport()], variants, out, trace)
    assert sorted(path.name for path in out.iterdir()) == [
        "student-float16.gguf",
        "student-float32.gguf",
        "student-int8.gguf",
    ]
    (table,) = [event["value"] for event in events if event["kind"] == "table"]
    assert {row["dtype"]: round(row["share_of_float32"], 2) for row in table} == {
        "float32": 1.0,
        "float16": 0.5,
        "int8": 0.27,
    }


def test_bytes_without_a_float32_file_have_no_share(tmp_path):
    (tmp_path / "x").write_bytes(b"12")
    assert bytes_by_dtype({"s-int8": tmp_path / "x"}) == [
        {"model": "s", "dtype": "int8", "bytes": 2, "share_of_float32": None}
    ]


def test_another_family_is_refused_with_those_that_work(make_tokenizer, tmp_path, trace):
    OPTForCausalLM(
        OPTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=1, vocab_size=300)
    ).save_pretrained(tmp_path / "opt")
    make_tokenizer(300).save_pretrained(tmp_path / "opt")
    with pytest.raises(InputError, match=r"family 'opt' can't be exported to GGUF(.|\n)*supported: llama"):
        export_gguf(tmp_path / "opt", tmp_path / "opt.gguf", "float32", trace)
    assert not (tmp_path / "opt.gguf").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "silu in its MLP"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "positions stretched by 'yarn'"),
    ],
)
def test_what_the_header_cannot_say_is_refused(source, change, message):
    config = json.loads((source / "config.json").read_text()) | change
    with pytest.raises(InputError, match=message):
        gguf_facts(config, "here")


def test_an_int8_directory_has_no_float_file(source, tmp_path, trace):
    quantize_model(Int8(), source, tmp_path / "int8", trace)
    with pytest.raises(InputError, match="is quantized to int8 and can't be exported as float16"):
        export_gguf(tmp_path / "int8", tmp_path / "x.gguf", "float16", trace)


def test_a_weight_that_float16_cannot_hold_leaves_no_file(source, tmp_path, trace):
    big = tmp_path / "big"
    big.mkdir()
    for path in source.iterdir():
        (big / path.name).write_bytes(path.read_bytes())
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"] * 1e7
    save_file(tensors, big / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"up_proj\.weight: its largest weight, .* is more than float16 can hold"):
        export_gguf(big, tmp_path / "big.gguf", "float16", trace)
    assert [path.name for path in tmp_path.iterdir()] == ["big"]


@pytest.mark.parametrize(
    ("scheme", "unpack"), [(Int4(), unpack_q4_0), (Int4(group=128), unpack_q4_0), (Int8Channel(), unpack_q8_0)]
)
def test_a_scale_that_many_columns_share_is_repeated_and_codes_are_kept(make_llama, tmp_path, trace, scheme, unpack):
    quantize_model(scheme, make_llama("tied"), tmp_path / "made", trace)
    export_gguf(tmp_path / "made", tmp_path / "made.gguf", scheme.scheme.partition("-")[0], trace)
    coded = Weights(tmp_path / "made").read_coded("model.layers.1.self_attn.v_proj.weight")
    back = unpack(tensors_of(tmp_path / "made.gguf")["blk.1.attn_v.weight"].data)
    np.testing.assert_array_equal(back.codes_OI, coded.codes_OI)
    np.testing.assert_array_equal(back.scales_OG, np.repeat(coded.scales_OG, 4 // coded.scales_OG.shape[1], axis=1))
    assert back.bits == coded.bits


def test_k_quants_and_int4_are_not_made_on_the_way_out(source, tmp_path, trace):
    with pytest.raises(InputError, match="isn't quantized, and can't be exported as int4"):
        export_gguf(source, tmp_path / "m.gguf", "int4", trace)
