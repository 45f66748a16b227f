"""llama.cpp behind the Engine: its layouts are checked, its numbers are right, and bad files are refused."""

import ctypes
import ctypes.util
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from potstill.core.errors import InputError, ResourceError
from potstill.core.trace import Trace
from potstill.export.gguf import export_gguf
from potstill.runtime import llama_abi
from potstill.runtime.llama_abi import check_defaults, load_library
from potstill.runtime.llama_cpp import LlamaCppEngine


@pytest.fixture(scope="module")
def file(make_llama, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tied.gguf"
    export_gguf(make_llama("tied"), path, "float32", Trace())
    return path


@pytest.fixture(scope="module")
def engine(file):
    with LlamaCppEngine(file, threads=1) as opened:
        yield opened


def tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 400, shape)


def test_a_model_computed_by_hand_has_the_logits_computed_by_hand(tmp_path):
    """With all weights of the block zero, logits are embeddings times the normalised embedding of the token."""
    width, vocabulary = 32, 40
    embeddings_VD = np.random.default_rng(0).normal(size=(vocabulary, width)).astype(np.float32)
    path = tmp_path / "by-hand.gguf"
    write_one_block(path, embeddings_VD)
    with LlamaCppEngine(path, threads=1) as engine:
        logits_BTV = engine.logits(np.arange(vocabulary)[None, :])
    rms_V1 = np.sqrt((embeddings_VD.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5)
    expected_TV = (embeddings_VD / rms_V1) @ embeddings_VD.T
    np.testing.assert_allclose(logits_BTV[0], expected_TV, atol=2e-5)


def write_one_block(path, embeddings_VD):
    vocabulary, width = embeddings_VD.shape
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{number}" for number in range(vocabulary)])
    writer.add_token_types([1] * vocabulary)
    writer.add_token_merges(["t 1"])
    writer.add_tensor("token_embd.weight", embeddings_VD)
    writer.add_tensor("output_norm.weight", np.ones(width, dtype=np.float32))
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(width, dtype=np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((width, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_facts_are_those_of_the_file(engine, file):
    facts = engine.facts
    assert (facts.name, facts.format, facts.engine, facts.dtype) == ("tied", "gguf", "llama.cpp", "float32")
    assert (facts.parameters, facts.vocabulary, facts.threads) == (654_208, 400, 1)
    assert facts.file_bytes == file.stat().st_size


def test_rows_do_not_see_each_other(engine):
    """Many rows in one call give each row's own logits, to the bit, whatever stands beside it."""
    tokens_BT = tokens(23, 50)
    together = engine.logits(tokens_BT)
    for row in (0, 9, 10, 22):
        np.testing.assert_array_equal(engine.logits(tokens_BT[row : row + 1])[0], together[row])


def test_batches_of_any_size_in_any_order_give_the_same(engine):
    """A cache that was made for more rows, or used for decoding in between, changes nothing."""
    tokens_BT = tokens(9, 30)
    whole = engine.logits(tokens_BT)
    for rows in (2, 9, 5, 1):
        np.testing.assert_array_equal(engine.logits(tokens_BT[:rows]), whole[:rows])
        engine.generate([1, 2, 3], rows)


def test_padding_to_the_right_changes_nothing_before_it(engine):
    tokens_BT = tokens(2, 40)
    padded_BT = np.concatenate([tokens_BT, np.zeros((2, 24), dtype=np.int64)], axis=1)
    np.testing.assert_allclose(engine.logits(padded_BT)[:, :40], engine.logits(tokens_BT), atol=1e-5)


def test_a_row_longer_than_a_call_is_scored_whole(engine):
    tokens_BT = tokens(1, 700)
    assert engine.logits(tokens_BT).shape == (1, 700, 400)
    np.testing.assert_allclose(engine.logits(tokens_BT)[:, :100], engine.logits(tokens_BT[:, :100]), atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (1, 1)])
def test_empty_and_tiny_batches_have_their_shape(engine, shape):
    assert engine.logits(tokens(*shape)).shape == (*shape, 400)


def test_greedy_decoding_is_the_argmax_of_scoring(engine):
    """Every generated token is what scoring the same text says: the cache holds what it should."""
    prompt = tokens(12).tolist()
    continuation = engine.generate(prompt, 20)
    logits_TV = engine.logits(np.array([prompt + continuation]))[0]
    assert continuation == logits_TV[len(prompt) - 1 : -1].argmax(-1).tolist()
    assert engine.generate(prompt, 20) == continuation


def test_nothing_asked_for_is_nothing_generated(engine):
    assert engine.generate([1, 2], 0) == []


def test_tokens_outside_the_vocabulary_and_empty_prompts_are_refused(engine):
    for wrong in (400, -1):
        with pytest.raises(InputError, match="the vocabulary has 400"):
            engine.logits(np.array([[0, wrong]]))
    with pytest.raises(InputError, match="empty prompt"):
        engine.generate([], 3)


def test_every_truncation_is_refused_with_a_reason(file, tmp_path):
    whole = file.read_bytes()
    path = tmp_path / "cut.gguf"
    for size in (4, 30, 500, 5_000, 20_000, len(whole) // 2, len(whole) - 100):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"llama\.cpp can't load it: "):
            LlamaCppEngine(path, threads=1)


@pytest.mark.parametrize("content", [b"", b"GG", b"no model at all", b"PK\x03\x04"])
def test_what_is_no_gguf_file_is_refused(tmp_path, content):
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(InputError, match="is no GGUF file"):
        LlamaCppEngine(tmp_path / "x.gguf", threads=1)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="can't be read"):
        LlamaCppEngine(tmp_path / "none.gguf", threads=1)


def test_flipped_header_bytes_never_end_the_process(file, tmp_path):
    """Whatever a byte of the header becomes, the file is loaded or refused; llama.cpp's assertions are not reached.

    Each file is opened in a fork, so that an abort would be seen and not suffered.
    """
    whole = file.read_bytes()
    random = np.random.default_rng(0)
    endings = set()
    for _ in range(40):
        content = bytearray(whole)
        content[int(random.integers(4, 9_000))] = int(random.integers(0, 256))
        path = tmp_path / "flipped.gguf"
        path.write_bytes(content)
        child = os.fork()
        if child == 0:
            try:
                with LlamaCppEngine(path, threads=1) as engine:
                    engine.logits(tokens(1, 4))
                os._exit(0)
            except InputError:
                os._exit(3)
            except BaseException:  # noqa: BLE001 - a fork must not run on into pytest
                os._exit(1)
        endings.add(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    assert endings <= {0, 3}


def test_a_struct_whose_fields_have_moved_is_refused_before_it_is_used(monkeypatch):
    """A field too many in front of our context parameters: the defaults no longer read as they should."""
    fields = [("new_field", ctypes.c_uint32), *llama_abi.ContextParams._fields_]
    moved = type("ContextParams", (ctypes.Structure,), {"_fields_": fields})
    library = load_library()
    monkeypatch.setattr(library.llama_context_default_params, "restype", moved)
    with pytest.raises(ResourceError, match=r"ContextParams\.n_ctx reads 2048 by default, where 512 is expected"):
        check_defaults(library)


def test_a_library_without_the_functions_is_refused():
    with pytest.raises(ResourceError, match="has no function llama_"):
        llama_abi.Library(Path(ctypes.util.find_library("c") or "libc.so.6"))


def test_opening_a_gguf_file_imports_neither_torch_nor_xllamacpp(file):
    program = (
        "import sys\nfrom pathlib import Path\nfrom potstill.runtime.table import open_engine\n"
        f"with open_engine(Path({str(file)!r}), threads=1) as engine: engine.generate([1, 2, 3], 2)\n"
        "print([name for name in ('torch', 'transformers', 'xllamacpp') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
    assert ended.stderr == "", "llama.cpp's log stays off the terminal"
