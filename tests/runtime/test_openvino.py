"""OpenVINO behind the Engine: rows on their own, a cache that holds what it should, and bad files refused."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

from potstill.core.errors import BugError, InputError, ResourceError
from potstill.core.trace import Trace
from potstill.export.openvino import export_openvino
from potstill.export.settings import OpenvinoExport
from potstill.runtime import openvino
from potstill.runtime.openvino import OpenvinoEngine
from potstill.runtime.table import open_engine


@pytest.fixture(scope="module")
def folder(make_llama, tmp_path_factory):
    path = tmp_path_factory.mktemp("openvino") / "tied.openvino"
    export_openvino(OpenvinoExport(), make_llama("tied"), path, "float32", Trace())
    return path


@pytest.fixture(scope="module")
def engine(folder):
    with OpenvinoEngine(folder, threads=1) as opened:
        yield opened


def tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 400, shape)


def test_facts_are_those_of_the_folder(engine, folder):
    facts = engine.facts
    assert (facts.name, facts.format, facts.engine, facts.dtype) == ("tied", "openvino", "openvino", "float32")
    assert (facts.parameters, facts.vocabulary, facts.threads) == (654_208, 400, 1)
    files = [folder / "openvino_model.xml", folder / "openvino_model.bin"]
    assert facts.file_bytes == sum(file.stat().st_size for file in files)


def test_rows_do_not_see_each_other_nor_the_call_before(engine):
    tokens_BT = tokens(9, 50)
    together = engine.logits(tokens_BT)
    engine.generate([1, 2, 3], 4)
    for row in (0, 4, 8):
        np.testing.assert_allclose(engine.logits(tokens_BT[row : row + 1])[0], together[row], atol=1e-5)


def test_parts_of_a_batch_give_the_whole(engine, monkeypatch):
    whole = engine.logits(tokens(7, 20))
    monkeypatch.setattr(openvino, "_LOGITS_PER_CALL", 3 * 20 * 400)
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
    engine = OpenvinoEngine(folder, threads=1)
    engine.close()
    with pytest.raises(BugError, match="closed"):
        engine.logits(tokens(1, 3))


def test_damaged_and_foreign_models_are_refused(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    text = (folder / "openvino_model.xml").read_text()
    for content, message in (
        (text[: len(text) // 2], "OpenVINO can't load it"),
        ("<net/>", "OpenVINO can't load it"),
        (text.replace("<parameters value=", "<other value="), "isn't an OpenVINO model that potstill exported"),
    ):
        (copy / "openvino_model.xml").write_text(content)
        with pytest.raises(InputError, match=message):
            OpenvinoEngine(copy, threads=1)


def test_weights_that_are_cut_or_missing_are_refused(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    whole = (folder / "openvino_model.bin").read_bytes()
    (copy / "openvino_model.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="OpenVINO can't load it"):
        OpenvinoEngine(copy, threads=1)
    (copy / "openvino_model.bin").unlink()
    with pytest.raises(InputError, match=r"there are no openvino_model\.xml and \.bin"):
        OpenvinoEngine(copy, threads=1)


def test_the_file_itself_can_be_opened(folder):
    with open_engine(folder / "openvino_model.xml", threads=1) as engine:
        assert engine.facts.vocabulary == 400


def test_without_the_extra_the_error_names_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ResourceError, match=r"pip install 'potstill\[openvino\]'"):
        OpenvinoEngine(folder, threads=1)


def test_opening_a_folder_imports_no_torch(folder):
    program = (
        "import sys\nfrom pathlib import Path\nfrom potstill.runtime.table import open_engine\n"
        f"with open_engine(Path({str(folder)!r}), threads=1) as engine: engine.generate([1, 2, 3], 2)\n"
        "print([name for name in ('torch', 'transformers', 'onnx') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
