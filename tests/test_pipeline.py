"""The pipeline as a user runs it: real processes, real signals, real files."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from potstill.core.durable import sha256_of_file

_WORDS = (
    "the",
    "small",
    "still",
    "distils",
    "a",
    "large",
    "model",
    "into",
    "one",
    "that",
    "runs",
    "while",
    "it",
    "says",
)
_RECIPE = """
name: tiny
seed: 3
threads: 1
data:
  source: {kind: files, paths: [text.txt]}
  sentences: 120
  tokens_per_sentence: 24
  validation_sentences: 20
  test_sentences: 20
  shortest_sentence: 4
  tokenizer: {kind: train, vocabulary: 300}
teacher: {kind: train, parameters: 60k, epochs: 3, sentences: 150}
labels: {kind: top_k, k: 8}
student: {parameters: 40k, epochs: 4, twin: steps}
quantize: [{scheme: float16}, {scheme: int8}]
export: [{format: gguf}]
evaluate: {prompts: ["the small"], prompt_tokens: 16, new_tokens: 8, rounds: 1, resamples: 100}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a text of our own making and a recipe for it."""
    folder = tmp_path_factory.mktemp("runs")
    generator = random.Random(0)
    sentences = [" ".join(generator.choices(_WORDS, k=generator.randint(8, 18))).capitalize() + "." for _ in range(600)]
    (folder / "text.txt").write_text("\n\n".join(sentences))
    (folder / "recipe.yaml").write_text(_RECIPE)
    return folder


def command(folder: Path, out: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "potstill", "run", str(folder / "recipe.yaml"), "--out", str(folder / out), *more]


def start(folder: Path, out: str, *more: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        command(folder, out, *more),
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(folder: Path, out: str, *more: str) -> str:
    process = start(folder, out, *more)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


def hashes(run: Path) -> dict[str, str]:
    """sha256 of every model, label, code and exported file of a run."""
    kept = [
        path
        for path in (run / "stages").rglob("*")
        if path.suffix in {".safetensors", ".gguf", ".npy", ".bin", ".shard"}
    ]
    kept += [
        path for path in (run / "stages" / "03-labels").rglob("*") if path.is_file() and path.name != "manifest.json"
    ]
    assert any("model.safetensors" in path.name for path in kept)
    return {str(path.relative_to(run)): sha256_of_file(path) for path in kept}


@pytest.fixture(scope="module")
def undisturbed(folder):
    started = time.perf_counter()
    output = finish(folder, "undisturbed", "--json")
    return folder / "undisturbed", json.loads(output), time.perf_counter() - started


def test_a_run_makes_every_key_of_the_summary_and_a_report(undisturbed):
    run, printed, _ = undisturbed
    summary = json.loads((run / "summary.json").read_text())
    assert printed == summary
    keys = {
        "recipe",
        "seconds",
        "peak_memory_bytes",
        "stages",
        "training",
        "models",
        "labels",
        "twin",
        "warnings",
        "fallbacks",
    }
    assert keys <= summary.keys()
    assert [stage["name"][:2] for stage in summary["stages"]] == ["01", "02", "03", "04", "06", "07", "08"]
    for stage in summary["stages"]:
        assert stage["inputs"], stage["name"]
        assert stage["outputs"], stage["name"]
    for row in summary["models"]:
        missing = [key for key, value in row.items() if value is None]
        assert not missing, (row["name"], missing)
    assert summary["labels"]["bytes_per_token"] > 0
    assert summary["twin"]["interval_95"][0] <= summary["twin"]["difference_nats"] <= summary["twin"]["interval_95"][1]
    assert len(summary["training"]["student"]) == 4
    assert "<html" in (run / "report.html").read_text()


def test_draws_distil_and_are_judged_at_equal_steps_and_at_equal_time(folder):
    """The whole way from sampled labels; the longer twin trains in the time that asking the teacher took, too."""
    finish(folder, "drawn", "--set", "labels={kind: sampled, draws: 8}", "--set", "student.twin=true")
    summary = json.loads((folder / "drawn" / "summary.json").read_text())
    assert summary["labels"]["kind"] == "sampled"
    assert {"validation_kl_nats", "validation_agreement"} <= summary["training"]["student"][-1].keys()
    check = summary["teacher_check"]
    assert (check["teacher_nats"] >= check["plain_nats"]) == any(
        "nothing to learn" in text for text in summary["warnings"]
    )
    assert 0 < check["teacher_training_nats"] < check["teacher_nats"] + 1
    preflight = summary["preflight"]
    assert preflight["bigram_nats"] < preflight["unigram_nats"]
    assert preflight["teacher_nats"] == pytest.approx(check["teacher_nats"], abs=1e-4)
    equal_time = summary["twin"]["equal_time"]
    seconds = equal_time["student_s"] + equal_time["opening_s"] + equal_time["capture_s"]
    assert equal_time["capture_s"] > 0
    assert equal_time["epochs"] == max(4, math.ceil(seconds / equal_time["plain_s_per_epoch"]))
    assert equal_time["interval_95"][0] <= equal_time["difference_nats"] <= equal_time["interval_95"][1]
    longer = summary["training"]["twin-long"]
    assert len(longer) == (equal_time["epochs"] if equal_time["epochs"] > 4 else 0)
    assert any(row["name"] == "twin-long" for row in summary["models"]) == bool(longer)
    page = (folder / "drawn" / "report.html").read_text()
    assert "trained as long" in page


def test_run_again_does_nothing_twice(folder, undisturbed):
    run, _, _ = undisturbed
    before = hashes(run)
    times = {path: path.stat().st_mtime_ns for path in (run / "stages").rglob("*")}
    again = json.loads(finish(folder, "undisturbed", "--json"))
    assert all(stage["cached"] for stage in again["stages"])
    assert hashes(run) == before
    assert {path: path.stat().st_mtime_ns for path in (run / "stages").rglob("*")} == times


@pytest.mark.usefixtures("undisturbed")
def test_a_changed_recipe_makes_again_only_what_depends_on_it(folder):
    summary = json.loads(finish(folder, "undisturbed", "--json", "--set", "quantize=[{scheme: int8}]"))
    cached = {stage["name"]: stage["cached"] for stage in summary["stages"]}
    assert {name for name, was_there in cached.items() if not was_there} == {"06-quantize", "07-export", "08-evaluate"}
    json.loads(finish(folder, "undisturbed", "--json"))


def test_killed_at_ten_random_moments_it_ends_in_the_same_bytes(folder, undisturbed):
    """SIGKILL, wherever the run happens to be; the last start is left alone."""
    whole, _, seconds = undisturbed
    generator = random.Random(os.urandom(8))
    moments = [generator.uniform(0.1, 0.6) * seconds for _ in range(10)]
    for moment in moments:
        process = start(folder, "killed")
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    finish(folder, "killed")
    assert hashes(folder / "killed") == hashes(whole), f"killed after {moments} s"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint_and_the_conventional_exit_code(folder, undisturbed, number, code):
    whole, _, _ = undisturbed
    out = f"signal-{code}"
    process = start(folder, out)
    history = folder / out / "stages" / "02-teacher" / "in-progress.json"
    deadline = time.monotonic() + 120
    while not history.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    finish(folder, out)
    assert hashes(folder / out) == hashes(whole)


def test_a_second_run_in_the_same_directory_is_refused_at_once(folder):
    first = start(folder, "busy")
    lock = folder / "busy" / "LOCK"
    deadline = time.monotonic() + 60
    while not (lock.exists() and lock.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    second = start(folder, "busy")
    _, errors = second.communicate(timeout=30)
    assert first.poll() is None, "the first run must still be there for this to prove anything"
    first.kill()
    first.communicate(timeout=60)
    assert second.returncode == 7
    assert "in use by another run" in errors


@pytest.mark.usefixtures("undisturbed")
def test_another_recipe_in_the_same_directory_is_refused(folder):
    process = start(folder, "undisturbed", "--set", "name=other")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 7
    assert "holds a run of recipe 'tiny'" in errors


def test_a_damaged_artefact_is_named(folder, undisturbed):
    run, _, _ = undisturbed
    victim = run / "stages" / "04-student" / "model" / "model.safetensors"
    content = victim.read_bytes()
    try:
        victim.write_bytes(content[:-1])
        process = start(folder, "undisturbed")
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 3
        assert "model.safetensors" in errors
    finally:
        victim.write_bytes(content)


def load_teacher_of(run: Path) -> tuple[str, ...]:
    """Overrides that take a run's teacher as a model that exists."""
    teacher = run / "stages" / "02-teacher" / "model"
    return ("--set", f"teacher={{kind: load, model: '{teacher}'}}", "--set", "data.tokenizer={kind: teacher}")


def test_a_loaded_teacher_brings_its_tokenizer_and_teaches(folder, undisturbed):
    """A model directory instead of a recipe for one: its own tokens, its own labels, every row of the table."""
    overrides = load_teacher_of(undisturbed[0])
    summary = json.loads(finish(folder, "loaded", "--json", *overrides))
    assert [stage["name"] for stage in summary["stages"]][:2] == ["02-teacher", "01-data"]
    assert summary["training"]["teacher"] == []
    assert summary["training"]["student"]
    assert {"teacher", "student", "student-int8"} <= {row["name"] for row in summary["models"]}
    again = json.loads(finish(folder, "loaded", "--json", *overrides))
    assert all(stage["cached"] for stage in again["stages"])


def test_a_student_too_small_for_a_loaded_teachers_vocabulary_fails_before_any_work(folder, undisturbed):
    process = start(folder, "too-small", *load_teacher_of(undisturbed[0]), "--set", "student.parameters=5k")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "too few for a vocabulary" in errors
    assert not (folder / "too-small" / "stages" / "01-data").exists()


def test_a_run_that_the_disk_cannot_hold_fails_before_any_work(folder):
    """Dense labels of a billion rows: petabytes."""
    process = start(folder, "too-large", "--set", "labels={kind: dense}", "--set", "data.sentences=1B")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 4
    assert "03-labels" in errors
    assert "GB are free" in errors
    assert not (folder / "too-large" / "stages" / "01-data").exists()


@pytest.mark.usefixtures("undisturbed")
def test_a_pruned_student_is_smaller_in_every_file(folder):
    summary = json.loads(
        finish(
            folder,
            "undisturbed",
            "--json",
            "--set",
            "prune={kind: structured, keep_parameters: 0.75, epochs: 1, calibration_sentences: 32}",
        )
    )
    rows = {(row["name"], row["format"]): row for row in summary["models"]}
    parent, pruned = rows["student-int8", "gguf"], rows["pruned-int8", "gguf"]
    assert pruned["parameters"] < parent["parameters"]
    assert pruned["bytes"] < parent["bytes"]
    assert len(summary["training"]["pruned"]) == 1
    config = json.loads((folder / "undisturbed/stages/05-prune/model/config.json").read_text())
    before = json.loads((folder / "undisturbed/stages/04-student/model/config.json").read_text())
    shrunk = ("num_hidden_layers", "intermediate_size")
    assert config["model_type"] == before["model_type"]
    assert any(config[key] < before[key] for key in shrunk)
    json.loads(finish(folder, "undisturbed", "--json"))


def test_the_answers_of_a_teacher_nobody_can_load_are_learnt_and_their_prompts_are_not(folder):
    generator = random.Random(1)
    rows = []
    for number in range(160):
        left, right = generator.randint(1, 60), generator.randint(1, 60)
        rows.append(
            {"ask": f"What is {left} and {right}, number {number}?", "reply": {"text": f"It is {left + right}."}}
        )
    (folder / "answers.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    summary = json.loads(
        finish(
            folder,
            "answers",
            "--json",
            "--set",
            "data.source={kind: answers, paths: [answers.jsonl], prompt: ask, answer: reply.text}",
            "--set",
            "data.tokens_per_sentence=40",
            "--set",
            "data.sentences=100",
            "--set",
            "teacher=null",
            "--set",
            "labels=null",
            "--set",
            "student={parameters: 40k, epochs: 3, losses: [{kind: cross_entropy}]}",
            "--set",
            "evaluate.prompts=[]",
        )
    )
    losses = [entry["validation_loss_nats"] for entry in summary["training"]["student"]]
    assert losses == sorted(losses, reverse=True)
    assert summary["twin"] is None
    assert summary["labels"] is None
    scored = summary["data"]["sentences"]
    assert scored["student"] == 100


def test_calibrated_schemes_read_the_recipe_s_text_and_each_variant_has_its_row(folder):
    schemes = "[{scheme: int8, group: 32}, {scheme: int4, group: 32}, {scheme: int4, group: 32, method: gptq}]"
    quick = ["--set", f"quantize={schemes}", "--set", "evaluate.speed=false", "--set", "student.epochs=1"]
    ended = start(folder, "calibrated", *quick)
    _, complaints = ended.communicate()
    assert ended.returncode == 0, complaints
    summary = json.loads((folder / "calibrated" / "summary.json").read_text())
    names = [row["name"] for row in summary["models"]]
    assert [name for name in names if name.startswith("student-")] == [
        "student-int8",
        "student-int4",
        "student-int4-gptq",
    ]
    assert any("tokens to calibrate on" in text for text in summary["fallbacks"]), "fewer than the 65,536 asked for"
    made = {row["name"]: row["fallbacks"] for row in summary["models"] if row["name"].startswith("student")}
    assert made == {"student": 0, "student-int8": 0, "student-int4": 0, "student-int4-gptq": 1}
    directory = next((folder / "calibrated" / "stages").glob("*-quantize")) / "student-int4-gptq"
    told = json.loads((directory / "calibration.json").read_text())
    assert {facts["tokens"] for facts in told["linears"].values()} == {told["tokens"]}
