"""A run by several processes, as a user starts and stops one: torchrun, real signals, real files."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

_WORDS = ("the", "small", "still", "distils", "a", "large", "model", "into", "one", "that", "runs", "while", "it")
_RECIPE = """
name: tiny
seed: 3
device: cpu
precision: float32
threads: 1
data:
  source: {kind: files, paths: [text.txt]}
  sentences: 90
  tokens_per_sentence: 24
  validation_sentences: 33
  test_sentences: 20
  shortest_sentence: 4
  tokenizer: {kind: train, vocabulary: 300}
teacher: {kind: train, parameters: 60k, epochs: 3, sentences: 120}
labels: {kind: top_k, k: 8}
student: {parameters: 40k, epochs: 4, twin: steps}
prune: {kind: structured, keep_parameters: 0.75, epochs: 1, calibration_sentences: 32}
quantize: []
export: []
evaluate: {prompts: ["the small"], prompt_tokens: 16, new_tokens: 8, rounds: 1, resamples: 100}
"""
_TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
_MODULE = ["-m", "potstill", "run"]
_STUDENT = Path("stages") / "04-student"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    generator = random.Random(0)
    sentences = [" ".join(generator.choices(_WORDS, k=generator.randint(8, 18))).capitalize() + "." for _ in range(500)]
    (folder / "text.txt").write_text("\n\n".join(sentences))
    (folder / "recipe.yaml").write_text(_RECIPE)
    return folder


def start(folder: Path, *command: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> tuple[str, str]:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output, errors


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 200
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert path.exists(), "the run ended before the moment that the test waits for"


def worker(torchrun: subprocess.Popen, rank: int) -> int:
    """The process id of a rank, from what the kernel tells of torchrun's children."""
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    return next(
        int(child) for child in children if f"\0RANK={rank}\0".encode() in Path(f"/proc/{child}/environ").read_bytes()
    )


def assert_same_histories(one: Path, other: Path) -> None:
    """The curves of teacher, student, twin and pruned: equal up to the order of float32 sums over some 30 steps."""
    for name in ("02-teacher", "04-student", "04-student/twin", "05-prune"):
        expected, history = (json.loads((run / "stages" / name / "history.json").read_text()) for run in (one, other))
        for left, right in zip(expected, history, strict=True):
            for key in ("train_loss_nats", "validation_loss_nats"):
                assert right[key] == pytest.approx(left[key], rel=1e-4), (name, key)


@pytest.fixture(scope="module")
def alone(folder):
    finish(start(folder, sys.executable, *_MODULE, "recipe.yaml", "--out", "alone"))
    return folder / "alone"


def test_two_processes_make_the_run_of_one_and_speak_with_one_voice(folder, alone):
    output, errors = finish(start(folder, *_TORCHRUN, *_MODULE, "recipe.yaml", "--out", "two", "--json"))
    summary = json.loads(output)
    assert summary == json.loads((folder / "two" / "summary.json").read_text())
    assert errors.count("report: two/report.html") == 1
    assert_same_histories(alone, folder / "two")
    expected = json.loads((alone / "summary.json").read_text())
    assert [stage["name"] for stage in summary["stages"]] == [stage["name"] for stage in expected["stages"]]
    assert [(row["name"], row["format"]) for row in summary["models"]] == [
        (row["name"], row["format"]) for row in expected["models"]
    ]
    for left, right in zip(expected["models"], summary["models"], strict=True):
        assert right["perplexity"] == pytest.approx(left["perplexity"], rel=1e-3)
    scratch = [path.name for path in (folder / "two" / "stages").rglob("*") if path.name.startswith(("state-", "best"))]
    assert not scratch


@pytest.mark.skipif(sys.platform != "linux", reason="finds torchrun's processes in /proc")
def test_stopped_then_killed_under_two_it_goes_on_alone(folder, alone):
    """SIGTERM to torchrun, SIGKILL to one process, sharded training, and one process for what is left.

    torchrun itself always exits with 1, so a shell around each process says what that exited with.
    """
    sharded = ("recipe.yaml", "--out", "parts", "--set", "parallel=fsdp")
    run = folder / "parts"
    telling = 'trap "kill -TERM \\$pid" TERM; "$0" "$@" & pid=$!; wait $pid; wait $pid; echo "ended with $?" >&2'
    process = start(folder, *_TORCHRUN, "--no-python", "bash", "-c", telling, sys.executable, *_MODULE, *sharded)
    wait_for(run / "stages" / "02-teacher" / "checkpoint.json", process)
    process.terminate()
    _, errors = process.communicate(timeout=200)
    assert process.returncode != 0
    assert errors.count("stopped; the work so far is in a checkpoint") == 1
    assert errors.count("ended with 143") == 2
    assert not (run / "stages" / "02-teacher" / "manifest.json").exists()
    assert list((run / "stages" / "02-teacher").glob("state-*-00002-of-00002.safetensors"))

    process = start(folder, *_TORCHRUN, *_MODULE, *sharded)
    wait_for(run / _STUDENT / "checkpoint.json", process)
    os.kill(worker(process, 1), signal.SIGKILL)
    _, errors = process.communicate(timeout=200)
    assert process.returncode != 0
    assert "another of the 2 processes of this run was killed" in errors
    assert not (run / _STUDENT / "manifest.json").exists()

    finish(start(folder, sys.executable, *_MODULE, *sharded))
    resumed = [
        event["value"]
        for line in (run / "trace.jsonl").read_text().splitlines()
        if (event := json.loads(line))["name"] == "resume"
    ]
    assert [text.split(":")[0] for text in resumed] == ["teacher", "twin", "student"]
    assert_same_histories(alone, run)


@pytest.mark.usefixtures("alone")
def test_what_one_process_cannot_do_ends_all_with_its_words_and_its_code(folder):
    """The second process works in another folder, as on a machine that doesn't share the file system."""
    for rank in (0, 1):
        (folder / f"machine-{rank}").mkdir()
    (folder / "machine-0" / "text.txt").symlink_to(folder / "text.txt")
    script = 'cd machine-$RANK && exec "$0" -m potstill run ../recipe.yaml --out here'
    process = start(folder, *_TORCHRUN, "--no-python", "bash", "-c", script, sys.executable)
    _, errors = process.communicate(timeout=200)
    assert process.returncode != 0
    assert "give an --out on a file system that all machines share" in errors
    assert "process 1 of the 2 of this run ended with exit code 3" in errors
    assert errors.count("exitcode  : 3") == 2, errors
    assert "Traceback" not in errors.split("torch/distributed/elastic")[0]
