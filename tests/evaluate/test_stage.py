"""The whole stage on real models in PyTorch and llama.cpp: every row has all its figures, and they are right."""

import json
import shutil

import pytest

from potstill.core.errors import InputError
from potstill.core.settings import parse_settings
from potstill.core.trace import Trace
from potstill.data.sequences import PackedSequences
from potstill.evaluate.entries import find_entries
from potstill.evaluate.likelihood import score
from potstill.evaluate.settings import EvaluateSettings
from potstill.evaluate.stage import evaluate_models
from potstill.report.summary import Model, Prediction
from potstill.runtime.pytorch import PytorchEngine

FIGURES = (
    "parameters", "bytes", "perplexity", "perplexity_interval_95", "accuracy", "agreement_with_teacher",
    "kl_to_teacher_nats", "prefill_tokens_per_s", "decode_tokens_per_s", "peak_memory_bytes", "prompt_tokens",
    "test_positions",
)  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(run_inputs, tmp_path_factory):
    """One evaluation with speed: (files read back, events)."""
    out = tmp_path_factory.mktemp("out")
    events = []
    settings = EvaluateSettings(rounds=1, new_tokens=4, prompt_tokens=16, threads=1, continuation_tokens=3)
    evaluate_models(settings, run_inputs, out, Trace(listeners=[events.append]))
    files = {name: json.loads((out / f"{name}.json").read_text()) for name in ("models", "predictions", "twin")}
    return files, events


def test_every_model_and_file_has_a_row_with_every_figure(evaluated):
    files, _ = evaluated
    assert [(row["name"], row["format"], row["engine"], row["dtype"]) for row in files["models"]] == [
        ("teacher", "safetensors", "pytorch", "float32"),
        ("student", "safetensors", "pytorch", "float32"),
        ("student", "gguf", "llama.cpp", "float32"),
        ("student-float16", "gguf", "llama.cpp", "float16"),
        ("student-int8", "gguf", "llama.cpp", "int8"),
        ("twin", "safetensors", "pytorch", "float32"),
    ]
    for row in files["models"]:
        for figure in FIGURES:
            assert row[figure] is not None, (row["name"], figure)
        low, high = row["perplexity_interval_95"]
        assert low < row["perplexity"] < high
        assert row["peak_memory_bytes"] > 10e6
        Model.model_validate(row)


def test_the_figures_are_those_of_the_models(evaluated, run_inputs):
    """The teacher is at no distance from itself; the student's row is what scoring it alone gives."""
    rows = {(row["name"], row["format"]): row for row in evaluated[0]["models"]}
    assert rows["teacher", "safetensors"]["agreement_with_teacher"] == 1
    assert rows["teacher", "safetensors"]["kl_to_teacher_nats"] == 0
    student = rows["student", "safetensors"]
    with PytorchEngine(run_inputs["student"] / "model", threads=1) as engine:
        alone = score({"it": engine}, None, PackedSequences.load(run_inputs["data"], "test"), Trace())["it"]
    assert student["perplexity"] == pytest.approx(alone.perplexity, rel=1e-6)
    assert student["accuracy"] == alone.accuracy
    assert student["test_positions"] == alone.num_scored
    assert student["agreement_with_teacher"] < 1
    assert student["kl_to_teacher_nats"] > 0.01


def test_files_in_llama_cpp_are_as_good_as_their_model_in_pytorch(evaluated):
    """float32 to rounding, float16 and int8 near it; each says how far it is from its base, with an interval."""
    rows = {(row["name"], row["format"]): row for row in evaluated[0]["models"]}
    base = rows["student", "safetensors"]
    assert "difference_to_base_nats" not in base
    for name, within in (("student", 1e-4), ("student-float16", 5e-3), ("student-int8", 5e-2)):
        row = rows[name, "gguf"]
        assert row["perplexity"] == pytest.approx(base["perplexity"], rel=within)
        assert abs(row["difference_to_base_nats"]) < within
        low, high = row["difference_to_base_interval_95"]
        assert low <= row["difference_to_base_nats"] <= high


def test_llama_cpp_is_measured_without_pytorch_in_the_process(evaluated):
    """PyTorch alone takes more than the whole process around a small GGUF file."""
    rows = evaluated[0]["models"]
    largest_file = max(row["peak_memory_bytes"] for row in rows if row["format"] == "gguf")
    smallest_model = min(row["peak_memory_bytes"] for row in rows if row["format"] == "safetensors")
    assert largest_file < 0.7 * smallest_model


def test_predictions_hold_what_the_report_draws(evaluated):
    files, _ = evaluated
    assert len(files["predictions"]) == 2
    for prediction in files["predictions"]:
        parsed = Prediction.model_validate(prediction)
        assert list(parsed.candidates) == list(parsed.continuations) == ["teacher", "student", "student-int8"]
        assert parsed.true_next is not None
        assert [block.block for block in parsed.blocks] == [0, 1, 2]


def test_the_twin_is_judged(evaluated):
    files, events = evaluated
    twin = files["twin"]
    assert twin["interval_95"][0] <= twin["difference_nats"] <= twin["interval_95"][1]
    assert twin["verdict"] in [event["value"] for event in events if event["kind"] == "note"]


def test_the_stage_tells_what_went_in_and_came_out(evaluated):
    _, events = evaluated
    told = {event["name"]: event["value"] for event in events if event["kind"] in {"input", "output"}}
    assert told["test text"]["shape"] == [60, 24]
    assert "the" in told["test text"]["example"]
    assert told["table of models"]["example"]["name"] == "teacher"
    assert told["predictions"]["shape"] == [2]
    speeds = [event for event in events if event["name"] == "decode_tokens_per_s"]
    assert len(speeds) == 6
    assert all(event["slowest"] <= event["value"] <= event["fastest"] for event in speeds)
    assert not [event["value"] for event in events if event["kind"] in {"warning", "fallback"}]


def quick(inputs, out, **more):
    events = []
    evaluate_models(EvaluateSettings(speed=False, threads=1, **more), inputs, out, Trace(listeners=[events.append]))
    return json.loads((out / "models.json").read_text()), events


def test_the_same_inputs_give_the_same_bytes(run_inputs, tmp_path):
    """Without speed, twice, the second time over the leftovers of the first."""
    quick(run_inputs, tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "models.json").write_bytes(b"[{")
    quick(run_inputs, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first


def test_without_speed_its_figures_are_null(run_inputs, tmp_path):
    rows, _ = quick(run_inputs, tmp_path)
    for row in rows:
        assert row["prefill_tokens_per_s"] is row["decode_tokens_per_s"] is row["peak_memory_bytes"] is None
        assert row["perplexity"] is not None


def test_without_a_teacher_the_student_is_the_reference_and_says_so(run_inputs, tmp_path):
    inputs = {role: path for role, path in run_inputs.items() if role != "teacher"}
    rows, events = quick(inputs, tmp_path)
    for row in rows:
        assert row["agreement_with_teacher"] is None
        assert row["kl_to_teacher_nats"] is None
        assert row["agreement_with_student"] is not None
    assert "no teacher's model" in next(event["value"] for event in events if event["name"] == "reference")
    assert list(json.loads((tmp_path / "predictions.json").read_text())[0]["candidates"]) == ["student", "student-int8"]


def test_without_a_twin_there_is_no_verdict(run_inputs, tmp_path):
    shutil.copytree(run_inputs["student"] / "model", tmp_path / "student" / "model")
    (tmp_path / "out").mkdir()
    quick({**run_inputs, "student": tmp_path / "student"}, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "twin.json").read_text()) is None


def test_without_exported_files_the_quantized_directory_is_evaluated(run_inputs):
    inputs = {role: path for role, path in run_inputs.items() if role != "export"}
    keys = [entry.key for entry in find_entries(inputs)]
    assert keys == ["teacher", "student", "student-int8", "twin"]


def test_prompts_of_the_recipe_are_asked_as_they_stand(run_inputs, tmp_path):
    settings = EvaluateSettings(prompts=("the function <|endoftext|> returns", "an"), speed=False, threads=1)
    evaluate_models(settings, run_inputs, tmp_path, Trace())
    predictions = json.loads((tmp_path / "predictions.json").read_text())
    assert [prediction["prompt"] for prediction in predictions] == list(settings.prompts)
    assert predictions[0]["true_next"] is None
    assert [token["id"] for token in predictions[0]["tokens"]].count(0) == 1, "only the beginning-of-text token"


def test_a_context_too_short_for_the_measurement_shortens_it_and_says_so(run_inputs, tmp_path):
    events = []
    settings = EvaluateSettings(rounds=1, threads=1, num_prompts=0)
    inputs = {role: path for role, path in run_inputs.items() if role not in {"export", "quantize", "teacher"}}
    evaluate_models(settings, inputs, tmp_path, Trace(listeners=[events.append]))
    fallback = next(event["value"] for event in events if event["kind"] == "fallback")
    assert "prompt of 48 tokens and 16 new ones" in fallback
    assert json.loads((tmp_path / "models.json").read_text())[0]["prompt_tokens"] == 48


def test_a_missing_student_is_said_plainly(run_inputs, tmp_path):
    with pytest.raises(InputError, match="no student"):
        quick({**run_inputs, "student": tmp_path}, tmp_path)


def test_a_file_whose_runtime_is_missing_gives_a_warning_and_no_row(run_inputs, tmp_path, monkeypatch):
    """llama.cpp hidden from the interpreter, as where it isn't installed."""
    from potstill.runtime import llama_abi  # noqa: PLC0415 - its cache is cleared around the test

    llama_abi.load_library.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    rows, events = quick(run_inputs, tmp_path)
    llama_abi.load_library.cache_clear()
    assert [row["engine"] for row in rows] == ["pytorch"] * 3
    warnings = [event["value"] for event in events if event["kind"] == "warning"]
    assert len(warnings) == 3
    assert all("llama.cpp isn't installed" in warning for warning in warnings)


def test_few_sequences_are_warned_about(run_inputs, tmp_path):
    _, events = quick(run_inputs, tmp_path, test_sentences=5)
    assert any("only 5 sequences" in str(event["value"]) for event in events if event["kind"] == "warning")


def test_settings_of_a_recipe_are_read():
    settings = parse_settings(EvaluateSettings, {"prompts": ["The function returns"], "speed": True}, source="test")
    assert settings.prompts == ("The function returns",)
