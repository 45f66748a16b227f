"""Run directories for the report's tests: plausible figures in the exact schema of a run, made without running one."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_VOCABULARY = 4096
_WORDS = (
    " the", " a", " value", " array", " new", " number", " list", " same", " result", " first", " object", " index",
    " given", " input", " string", " shape", " data", " type", " default", " None", ".", ",", "\n", " of", " to",
)  # fmt: skip
_PROMPTS = (
    ("The function returns", " the", ["The", " function", " returns"]),
    ("Raises an error if", " the", ["R", "aises", " an", " error", " if"]),
    ("Compute the mean along the given", " axis", ["Compute", " the", " mean", " along", " the", " given"]),
)


@pytest.fixture
def summary() -> dict[str, Any]:
    """A summary of a small run: teacher trained, student distilled, twin, float16 and int8 files."""
    return plausible_summary()


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """Write a run directory around a summary and give its path."""

    def write(content: dict[str, Any]) -> Path:
        return write_run_directory(tmp_path / "run", content)

    return write


@pytest.fixture(scope="session")
def make_run() -> Callable[[Path, dict[str, str]], Path]:
    """Write a run directory into a folder; ``{"every string": text}`` puts that text before every string of it."""

    def make(directory: Path, change: dict[str, str]) -> Path:
        content = plausible_summary(prune=True)
        prefix = change.get("every string")
        return write_run_directory(directory, content if prefix is None else _prefixed(content, prefix))

    return make


def _prefixed(value: Any, prefix: str) -> Any:
    if isinstance(value, dict):
        return {key: _prefixed(part, prefix) for key, part in value.items()}
    if isinstance(value, list):
        return [_prefixed(part, prefix) for part in value]
    return prefix + value if isinstance(value, str) else value


def write_run_directory(directory: Path, summary: dict[str, Any]) -> Path:
    """A summary, the trace of its stages and a recipe."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    events = [
        {"time": f"2026-11-21T18:{minute:02d}:00.000+00:00", "stage": stage["name"], "kind": "stage_end",
         "name": stage["name"], "value": None, "unit": None}
        for minute, stage in enumerate(summary.get("stages") or [])
    ]  # fmt: skip
    (directory / "trace.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    (directory / "recipe.yaml").write_text(_RECIPE, encoding="utf-8")
    return directory


def plausible_summary(*, prune: bool = False, seed: int = 0) -> dict[str, Any]:
    """Figures that hang together: perplexities follow from losses, bytes from parameters."""
    rng = random.Random(seed)
    models = _models(prune)
    return {
        "recipe": "quickstart",
        "seconds": 148.6,
        "peak_memory_bytes": 1_640_000_000,
        "stages": _stages(prune),
        "training": {
            "teacher": _teacher_epochs(),
            "student": _student_epochs(),
            "twin": _twin_epochs(),
        },
        "models": models,
        "labels": {"kind": "top_k", "tokens": 187_420, "bytes": 24_740_000, "bytes_per_token": 132.0},
        "twin": {
            "difference_nats": -0.214,
            "interval_95": [-0.231, -0.197],
            "verdict": "the student of the teacher is better",
        },
        "warnings": ["openvino is not installed: no rows for it"],
        "fallbacks": [],
        "data": {
            "sentences": {"train": 4000, "validation": 500, "test": 500, "student": 4000, "tokens_per_sentence": 50},
            "text": {"paragraphs": 66_012, "sentences": 71_940, "characters": 15_204_112},
            "dropped": {"too short": 1204, "duplicate": 388},
            "source": {"kind": "docstrings"},
            "vocabulary": _VOCABULARY,
            "beginning_id": 0,
            "example": "Return a new array with the same shape and type as the given array, filled with zeros.",
        },
        "predictions": [_prediction(rng, *prompt) for prompt in _PROMPTS],
        "label_example": _label_example(rng),
        "hardware": {"processor": "A <processor>", "cores_usable": 2, "memory_bytes": 8 << 30, "threads": 2},
    }


def _models(prune: bool) -> list[dict[str, Any]]:
    teacher, student, pruned = 4_128_256, 1_050_112, 704_000
    rows = [_model("teacher", "safetensors", "pytorch", "float32", teacher, 48.1, 1.0, 0.0)]
    bases = [("student", student, 56.7, 0.712, 0.243)]
    if prune:
        bases.append(("pruned", pruned, 60.9, 0.668, 0.309))
    for base, parameters, perplexity, agreement, kl in bases:
        rows.append(_model(base, "safetensors", "pytorch", "float32", parameters, perplexity, agreement, kl))
        rows.append(_model(base, "gguf", "llama.cpp", "float32", parameters, perplexity, agreement, kl))
        rows.append(
            _model(
                f"{base}-float16",
                "gguf",
                "llama.cpp",
                "float16",
                parameters,
                perplexity * 1.0001,
                agreement - 0.0002,
                kl,
            )
        )
        rows.append(
            _model(
                f"{base}-int8",
                "safetensors",
                "pytorch",
                "int8",
                parameters,
                perplexity * 1.0012,
                agreement - 0.0017,
                kl + 0.0006,
            )
        )
        rows.append(
            _model(
                f"{base}-int8",
                "gguf",
                "llama.cpp",
                "int8",
                parameters,
                perplexity * 1.0013,
                agreement - 0.0019,
                kl + 0.0007,
            )
        )
    return rows


def _model(
    name: str, format_: str, engine: str, dtype: str, parameters: int, perplexity: float, agreement: float, kl: float
) -> dict[str, Any]:
    per_weight = {"float32": 4.0, "float16": 2.0, "int8": 34 / 32}[dtype]
    fast = {"float32": 1.0, "float16": 1.3, "int8": 1.9}[dtype] * (5.2 if engine == "llama.cpp" else 1.0)
    return {
        "name": name,
        "format": format_,
        "engine": engine,
        "dtype": dtype,
        "parameters": parameters,
        "bytes": int(parameters * per_weight) + (61_440 if format_ == "gguf" else 4_200),
        "perplexity": perplexity,
        "perplexity_interval_95": [perplexity * 0.965, perplexity * 1.037],
        "accuracy": 0.331 - 0.1 * kl,
        "agreement_with_teacher": agreement,
        "kl_to_teacher_nats": kl,
        "prefill_tokens_per_s": 9_200 * fast * (4.1e6 / parameters) ** 0.6,
        "decode_tokens_per_s": 130 * fast * (4.1e6 / parameters) ** 0.5,
        "peak_memory_bytes": 210_000_000 + parameters * 6,
        "prompt_tokens": 128,
        "test_positions": 21_340,
    }


def _teacher_epochs() -> list[dict[str, Any]]:
    return [
        {
            "epoch": epoch,
            "train_loss_nats": 3.55 + 3.1 * math.exp(-0.8 * epoch),
            "validation_loss_nats": (loss := 3.84 + 2.6 * math.exp(-0.9 * epoch)),
            "validation_accuracy": 0.34 - 0.25 * math.exp(-0.8 * epoch),
            "validation_perplexity": math.exp(loss),
            "tokens_per_s": 9_400.0 + 30 * epoch,
            "loss": "cross_entropy",
            "observation": "held-out loss falls with the training loss",
        }
        for epoch in range(1, 5)
    ]


def _student_epochs() -> list[dict[str, Any]]:
    rows = []
    for epoch in range(1, 11):
        kl = 0.235 + 1.1 * math.exp(-0.42 * epoch)
        cross_entropy = 4.03 + 1.4 * math.exp(-0.45 * epoch)
        better = "still improving" if epoch < 8 else "levelling off: each epoch now brings less than a hundredth"
        rows.append(
            {
                "epoch": epoch,
                "train_loss_nats": kl - 0.012 * epoch,
                "validation_loss_nats": kl,
                "validation_cross_entropy_nats": cross_entropy,
                "validation_accuracy": 0.318 - 0.2 * math.exp(-0.5 * epoch),
                "validation_agreement": 0.72 - 0.45 * math.exp(-0.35 * epoch),
                "validation_perplexity": math.exp(cross_entropy),
                "tokens_per_s": 24_100.0 - 40 * epoch,
                "loss": "forward_kl",
                "observation": f"KL to the teacher {kl:.2f} nats, {better}",
            }
        )
    return rows


def _twin_epochs() -> list[dict[str, Any]]:
    return [
        {
            "epoch": epoch,
            "train_loss_nats": 4.9 - 0.17 * epoch,
            "validation_loss_nats": (loss := 4.22 + 1.5 * math.exp(-0.55 * epoch) + 0.006 * max(0, epoch - 6) ** 2),
            "validation_accuracy": 0.301 - 0.18 * math.exp(-0.5 * epoch),
            "validation_agreement": 0.51 - 0.3 * math.exp(-0.4 * epoch),
            "validation_perplexity": math.exp(loss),
            "tokens_per_s": 25_000.0,
            "loss": "cross_entropy",
            "observation": "over-fitting: held-out loss rises" if epoch > 7 else "improving",
        }
        for epoch in range(1, 11)
    ]


def _stages(prune: bool) -> list[dict[str, Any]]:
    sentence = "Return a new array with the same shape and type as the given array."
    tokens = {
        "what": "training tokens",
        "shape": [4000, 50],
        "dtype": "uint16",
        "example": [0, 1542, 264, 811, 913, 340],
    }
    logprobs = {"what": "log-probabilities of the kept tokens", "shape": [187_420, 32], "dtype": "float16",
                "example": [-0.52, -1.94, -2.71, -3.02]}  # fmt: skip
    stages = [
        ("01-data", "docstrings", 9.8, 410e6, False,
         [{"what": "paragraphs", "shape": [66_012], "dtype": "text", "example": sentence}], [tokens]),
        ("02-teacher", "train", 58.4, 1310e6, False, [tokens],
         [{"what": "weights", "shape": [4_128_256], "dtype": "float32", "example": "embed_tokens [4096 x 192]"}]),
        ("03-labels", "top_k", 11.2, 980e6, True, [tokens], [logprobs]),
        ("04-student", "scratch", 41.9, 870e6, False, [logprobs],
         [{"what": "weights", "shape": [1_050_112], "dtype": "float32", "example": "embed_tokens [4096 x 96]"}]),
        ("06-quantize", "int8", 0.9, 520e6, False,
         [{"what": "weights", "shape": [1_050_112], "dtype": "float32", "example": [0.0213, -0.117, 0.0081]}],
         [{"what": "codes", "shape": [1_050_112], "dtype": "int8", "example": [23, -127, 9]},
          {"what": "scales", "shape": [32_816], "dtype": "float16", "example": [0.00092]}]),
        ("07-export", "gguf", 0.6, 510e6, False,
         [{"what": "codes", "shape": [1_050_112], "dtype": "int8", "example": [23]}],
         [{"what": "file", "shape": [], "dtype": "gguf", "example": "student-int8.gguf"}]),
        ("08-evaluate", "evaluate", 25.1, 1640e6, False,
         [{"what": "held-out tokens", "shape": [500, 50], "dtype": "uint16", "example": [0, 77, 1033]}],
         [{"what": "rows", "shape": [6], "dtype": "table", "example": "student-int8: perplexity 56.8"}]),
    ]  # fmt: skip
    if prune:
        stages.insert(4, ("05-prune", "structured", 14.2, 800e6, False, [], [
            {"what": "weights", "shape": [704_000], "dtype": "float32", "example": "3 of 4 blocks, 256 of 384 channels"}
        ]))  # fmt: skip
    names = ("name", "kind", "seconds", "peak_memory_bytes", "cached", "inputs", "outputs")
    return [dict(zip(names, stage, strict=True)) for stage in stages]


def _prediction(rng: random.Random, prompt: str, true_next: str, pieces: list[str]) -> dict[str, Any]:
    scores = sorted((rng.gauss(0, 1.6) + 6 for _ in _WORDS), reverse=True)
    words = rng.sample(_WORDS, len(_WORDS))
    return {
        "prompt": prompt,
        "tokens": [
            {
                "id": rng.randrange(300, _VOCABULARY),
                "text": piece,
                "embedding": [round(rng.gauss(0, 0.6), 3) for _ in range(8)],
            }
            for piece in ["<|endoftext|>", *pieces]
        ],
        "true_next": true_next,
        "blocks": [
            {
                "block": block,
                "rms": 0.6 * 1.9**block,
                "values": [round(rng.gauss(0, 0.6 * 1.9**block), 3) for _ in range(8)],
                "top": [
                    {"token": rng.choice(_WORDS), "probability": round(0.08 * (block + 1) / (place + 1), 3)}
                    for place in range(3)
                ],
            }
            for block in range(5)
        ],
        "candidates": {
            "teacher": _candidates(words, scores),
            "student": _candidates(words, [score + rng.gauss(0, 0.3) for score in scores]),
            "student-int8": _candidates(words, [score + rng.gauss(0, 0.31) for score in scores]),
        },
        "continuations": {
            "teacher": " the number of elements in the array.\n If the axis is given, the result is",
            "student": " the array of the values of the input.\n The default is None, the",
            "student-int8": " the array of the values of the input.\n The default is None, the",
        },
    }


def _candidates(words: list[str], logits: list[float]) -> list[dict[str, Any]]:
    total = sum(math.exp(logit) for logit in logits) * 1.4
    ranked = sorted(zip(words, logits, strict=True), key=lambda pair: -pair[1])[:8]
    return [
        {"token": word, "id": _WORDS.index(word) + 260, "probability": math.exp(logit) / total, "logit": logit}
        for word, logit in ranked
    ]


def _label_example(rng: random.Random) -> dict[str, Any]:
    masses = sorted((math.exp(rng.gauss(0, 1.4)) for _ in range(24)), reverse=True)
    total = sum(masses) / 0.86
    words = rng.sample(_WORDS, 24)
    return {
        "context": "Return a new array with the same",
        "true_next": words[2],
        "entries": [
            {"token": word, "id": 260 + number, "probability": mass / total}
            for number, (word, mass) in enumerate(zip(words, masses, strict=True))
        ],
        "tail_mass": 0.14,
        "entropy_nats": 3.412,
    }


_RECIPE = """\
name: quickstart
seed: 0
data:
  source: {kind: docstrings}
  sentences: 4000
  tokens_per_sentence: 50
  tokenizer: {kind: train, vocabulary: 4096}
teacher: {kind: train, parameters: 4M, epochs: 4}
labels: {kind: top_k, k: 32}
student:
  parameters: 1M
  from: scratch
  epochs: 10
  losses: [{kind: forward_kl, weight: 1.0}]
prune: null
quantize: [{scheme: float16}, {scheme: int8}]
export: [{format: gguf}]
evaluate: {prompts: ["The function returns"], speed: true}
"""
