"""The verb that measures: every model named has its row, the fastest is one of them, and what is missing is named."""

import json
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from potstill.bench import bench
from potstill.cli import main
from potstill.core.errors import InputError
from potstill.core.trace import Trace
from potstill.evaluate.speed import Work
from potstill.export.onnx import export_onnx
from potstill.export.settings import OnnxExport

WORK = Work(prompt_tokens=8, new_tokens=4, rounds=2)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A small random model as a directory and as an ONNX folder."""
    root = tmp_path_factory.mktemp("bench")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=100, **sizes)).save_pretrained(root / "plain")
    export_onnx(OnnxExport(), root / "plain", root / "m.onnx", "float32", Trace())
    return {"plain": root / "plain", "exported": root / "m.onnx"}


def test_every_model_has_a_row_and_the_fastest_is_one_of_them(models):
    result = bench(models, WORK, threads=[1])
    assert [(row["model"], row["engine"]) for row in result["models"]] == [
        ("plain", "pytorch"),
        ("exported", "onnxruntime"),
    ]
    for row in result["models"]:
        for job in ("prefill", "decode"):
            key = f"{job}_tokens_per_s"
            assert 0 < row[f"{key}_slowest"] <= row[key] <= row[f"{key}_fastest"]
            assert row[key] <= next(one[key] for one in result["models"] if one["model"] == result[f"fastest_{job}"])
    assert result["left_out"] == {}


def test_every_number_of_threads_is_a_row(models):
    result = bench({"exported": models["exported"]}, WORK, threads=[1, 2])
    assert [(row["model"], row["threads"]) for row in result["models"]] == [("exported", 1), ("exported", 2)]


def test_a_runtime_that_is_missing_leaves_its_model_out_and_says_so(models, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = bench(models, WORK, threads=[1])
    assert [row["model"] for row in result["models"]] == ["plain"]
    assert "pip install 'potstill[onnx]'" in result["left_out"]["exported"]
    with pytest.raises(InputError, match="no model could be opened"):
        bench({"exported": models["exported"]}, WORK, threads=[1])


def test_the_verb_prints_one_json_document(models, capsys):
    paths = [str(path) for path in models.values()]
    with pytest.raises(SystemExit) as ended:
        main(["bench", *paths, "--prompt-tokens", "8", "--new-tokens", "4", "--rounds", "1", "--json"])
    assert ended.value.code == 0
    result = json.loads(capsys.readouterr().out)
    assert {Path(row["model"]).name for row in result["models"]} == {"plain", "m.onnx"}


def test_a_path_that_nothing_opens_is_refused(tmp_path, capsys):
    assert main(["bench", str(tmp_path / "none")]) == 3
    assert "doesn't exist" in capsys.readouterr().err
