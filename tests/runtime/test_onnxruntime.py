"""onnxruntime behind the Engine: rows on their own, a cache that holds what it should, and bad files refused."""

import subprocess
import sys

import numpy as np
import onnx
import pytest

from potstill.core.errors import BugError, InputError, ResourceError
from potstill.core.trace import Trace
from potstill.export.onnx import export_onnx
from potstill.export.settings import OnnxExport
from potstill.runtime import onnxruntime
from potstill.runtime.onnxruntime import OnnxruntimeEngine
from potstill.runtime.table import open_engine


@pytest.fixture(scope="module")
def folder(make_llama, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "tied.onnx"
    export_onnx(OnnxExport(), make_llama("tied"), path, "float32", Trace())
    return path


@pytest.fixture(scope="module")
def engine(folder):
    with OnnxruntimeEngine(folder, threads=1) as opened:
        yield opened


def tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 400, shape)


def test_facts_are_those_of_the_folder(engine, folder):
    facts = engine.facts
    assert (facts.name, facts.format, facts.engine, facts.dtype) == ("tied", "onnx", "onnxruntime", "float32")
    assert (facts.parameters, facts.vocabulary, facts.threads) == (654_208, 400, 1)
    assert facts.file_bytes == (folder / "model.onnx").stat().st_size


def test_rows_do_not_see_each_other(engine):
    tokens_BT = tokens(9, 50)
    together = engine.logits(tokens_BT)
    for row in (0, 4, 8):
        np.testing.assert_allclose(engine.logits(tokens_BT[row : row + 1])[0], together[row], atol=1e-5)


def test_parts_of_a_batch_give_the_whole(engine, monkeypatch):
    whole = engine.logits(tokens(7, 20))
    monkeypatch.setattr(onnxruntime, "_LOGITS_PER_CALL", 3 * 20 * 400)
    np.testing.assert_allclose(engine.logits(tokens(7, 20)), whole, atol=1e-5)


def test_padding_to_the_right_changes_nothing_before_it(engine):
    tokens_BT = tokens(2, 40)
    padded_BT = np.concatenate([tokens_BT, np.zeros((2, 24), dtype=np.int64)], axis=1)
    np.testing.assert_allclose(engine.logits(padded_BT)[:, :40], engine.logits(tokens_BT), atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (1, 1)])
def test_empty_and_tiny_batches_have_their_shape(engine, shape):
    assert engine.logits(tokens(*shape)).shape == (*shape, 400)


@pytest.mark.parametrize("length", [1, 12])
def test_greedy_decoding_is_the_argmax_of_scoring(engine, length):
    prompt = tokens(length).tolist()
    continuation = engine.generate(prompt, 30)
    logits_TV = engine.logits(np.array([prompt + continuation]))[0]
    assert continuation == logits_TV[len(prompt) - 1 : -1].argmax(-1).tolist()
    assert engine.generate(prompt, 30) == continuation


def test_nothing_asked_for_is_nothing_generated(engine):
    assert engine.generate([1, 2], 0) == []


def test_tokens_outside_the_vocabulary_and_empty_prompts_are_refused(engine):
    for wrong in (400, -1):
        with pytest.raises(InputError, match="the vocabulary has 400"):
            engine.logits(np.array([[0, wrong]]))
    with pytest.raises(InputError, match="empty prompt"):
        engine.generate([], 3)


def test_a_closed_engine_says_so(folder):
    engine = OnnxruntimeEngine(folder, threads=1)
    engine.close()
    with pytest.raises(BugError, match="closed"):
        engine.logits(tokens(1, 3))


def test_the_file_itself_can_be_opened(folder):
    with open_engine(folder / "model.onnx", threads=1) as engine:
        assert engine.facts.vocabulary == 400


def test_truncated_and_foreign_files_are_refused(folder, tmp_path):
    whole = (folder / "model.onnx").read_bytes()
    path = tmp_path / "cut.onnx"
    for size in (0, 4, 500, len(whole) // 2, len(whole) - 100):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"onnxruntime can't load it|isn't an ONNX model that potstill"):
            OnnxruntimeEngine(path, threads=1)
    with pytest.raises(InputError, match="no such file"):
        OnnxruntimeEngine(tmp_path / "none.onnx", threads=1)


def test_weights_outside_the_folder_are_refused(folder, tmp_path):
    """A model whose weights point at another place on the disk isn't read."""
    model = onnx.load(folder / "model.onnx")
    (tmp_path / "secret").write_bytes(bytes(1 << 20))
    inner = tmp_path / "inner"
    inner.mkdir()
    tensor = next(one for one in model.graph.initializer if one.name.endswith("down_proj.weight"))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    (inner / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="onnxruntime can't load it"):
        OnnxruntimeEngine(inner, threads=1)


def test_a_model_of_another_program_is_refused(folder, tmp_path):
    model = onnx.load(folder / "model.onnx")
    del model.metadata_props[:]
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="isn't an ONNX model that potstill exported"):
        OnnxruntimeEngine(tmp_path / "x.onnx", threads=1)


def test_without_the_extra_the_error_names_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ResourceError, match=r"pip install 'potstill\[onnx\]'"):
        OnnxruntimeEngine(folder, threads=1)


def test_opening_a_folder_imports_neither_torch_nor_onnx(folder):
    program = (
        "import sys\nfrom pathlib import Path\nfrom potstill.runtime.table import open_engine\n"
        f"with open_engine(Path({str(folder)!r}), threads=1) as engine: engine.generate([1, 2, 3], 2)\n"
        "print([name for name in ('torch', 'transformers', 'onnx') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
    assert ended.stderr == ""
