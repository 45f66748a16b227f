"""What do labels cost, and how well do they point? ``python benchmarks/labels.py runs/quickstart``.

For a run's text and teacher, over kinds of labels: bytes a token of the store, every file counted; for draws the floor,
what the teacher's own probabilities would code the same draws in; and the mean angle between the student's gradient
from these labels and from the whole distribution, over the same batches. The student has learned from the whole
distribution for a little while, so that its gradient is one of a student at work.

The result goes to benchmarks/results/labels_PROCESSOR-CORES_DATE/result.json.
"""

import functools
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results_folder import results_folder
from torch import Tensor
from transformers import PreTrainedModel

from potstill.core.trace import Trace
from potstill.data.facts import token_facts
from potstill.data.sequences import PackedSequences
from potstill.distill.divergences import forward_kl
from potstill.distill.student import build_student
from potstill.labels.kinds import DenseLabels, SoftLabels
from potstill.labels.settings import Dense, LabelKind, Sampled, TopK
from potstill.labels.store import LabelStore
from potstill.model.anatomy import hidden_states, logits_of
from potstill.model.store import load_model, model_fingerprint, tokenizer_fingerprint
from potstill.teacher.capture import capture_labels
from potstill.teacher.local import LocalTeacher, labels_of_rows
from potstill.teacher.settings import CaptureSettings

ROWS, BATCHES, BATCH, STEPS, PARAMETERS = 1500, 12, 16, 60, 1_250_000
DRAWS = (4, 8, 16, 32, 50, 64)
KINDS: tuple[LabelKind, ...] = (
    *(Sampled(draws=draws, sampling="systematic") for draws in DRAWS),
    *(Sampled(draws=draws, sampling="multinomial") for draws in DRAWS),
    *(TopK(k=k) for k in (4, 8, 32, 128, 512)),
)


def main(run: Path) -> None:
    """Measure every kind of label and write the table."""
    inputs = {"data": run / "stages" / "01-data", "teacher": run / "stages" / "02-teacher"}
    text = PackedSequences.load(inputs["data"], "train").first(ROWS)
    student = _student(inputs, text)
    batches = [np.arange(first, first + BATCH) for first in range(0, BATCHES * BATCH, BATCH)]
    exact = [_gradient(student, text, rows_B, _dense(inputs, text, rows_B)) for rows_B in batches]
    table = []
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as scratch:
            capture_labels(CaptureSettings(labels=kind, sentences=ROWS), inputs, Path(scratch), Trace())
            store = _open(inputs, Path(scratch) / "train", text)
            angles = [
                _degrees(gradient, _gradient(student, text, rows_B, store.read(rows_B)))
                for gradient, rows_B in zip(exact, batches, strict=True)
            ]
            row = {
                "label": kind.model_dump(),
                "bytes_per_token": store.facts["bytes_per_token"],
                "raw_bytes_per_token": 6 * kind.k if isinstance(kind, TopK) else None,
                "floor_bytes_per_token": _floor(inputs, text, store, batches) if isinstance(kind, Sampled) else None,
                "gradient_angle_degrees": sum(angles) / len(angles),
                "tokens": store.facts["tokens"],
            }
        table.append(row)
        print(json.dumps(row), flush=True)
    folder = results_folder("labels")
    (folder / "result.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    print(f"kept in {folder}")


def _student(inputs: dict[str, Path], text: PackedSequences) -> PreTrainedModel:
    tokens = token_facts(inputs["data"])
    student = build_student(PARAMETERS, start="scratch", teacher=None, vocabulary=tokens.vocabulary, seed=0)
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-3)
    for step in range(STEPS):
        rows_B = np.arange(step * BATCH, (step + 1) * BATCH) % len(text)
        _loss(student, text, rows_B, _dense(inputs, text, rows_B)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return student


@functools.cache
def _teacher(directory: Path) -> PreTrainedModel:
    return load_model(directory)


def _dense(inputs: dict[str, Path], text: PackedSequences, rows_B: Any) -> SoftLabels:  # noqa: ANN401 - row numbers
    model = _teacher(inputs["teacher"] / "model")
    vocabulary = token_facts(inputs["data"]).vocabulary
    teacher = LocalTeacher(model, vocabulary, CaptureSettings(labels=Dense(), sentences=ROWS))
    parts = [part for part in labels_of_rows(teacher, text, rows_B) if isinstance(part, DenseLabels)]
    return DenseLabels(torch.cat([part.logprobs_PV for part in parts]))


def _loss(student: PreTrainedModel, text: PackedSequences, rows_B: Any, labels: SoftLabels) -> Tensor:  # noqa: ANN401
    tokens, scored = text.rows(rows_B)
    hidden_PD = hidden_states(student, torch.from_numpy(tokens))[torch.from_numpy(scored)]
    return forward_kl(logits_of(student, hidden_PD), labels).mean()


def _gradient(student: PreTrainedModel, text: PackedSequences, rows_B: Any, labels: SoftLabels) -> Tensor:  # noqa: ANN401
    student.zero_grad()
    _loss(student, text, rows_B, labels).backward()
    return torch.cat([parameter.grad.flatten() for parameter in _with_gradient(student)])


def _with_gradient(student: PreTrainedModel) -> Iterator[Any]:
    return (parameter for parameter in student.parameters() if parameter.grad is not None)


def _degrees(a: Tensor, b: Tensor) -> float:
    cosine = torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0)
    return math.degrees(math.acos(min(1.0, float(cosine))))


def _open(inputs: dict[str, Path], directory: Path, text: PackedSequences) -> LabelStore:
    return LabelStore.open(
        directory,
        sequences=text,
        teacher_fingerprint=model_fingerprint(inputs["teacher"] / "model"),
        tokenizer_fingerprint=tokenizer_fingerprint(inputs["data"] / "tokenizer"),
    )


def _floor(inputs: dict[str, Path], text: PackedSequences, store: LabelStore, batches: list[Any]) -> float:
    """Bytes a token in which the teacher's own probabilities would code the draws of these batches."""
    assert isinstance(store.kind, Sampled)  # noqa: S101 - the caller's own question
    num_draws, bits, positions = store.kind.draws, 0.0, 0
    for rows_B in batches:
        dense, labels = _dense(inputs, text, rows_B), store.read(rows_B)
        counts_PK = (labels.weights_PK * num_draws).round().double()
        logprobs_PK = dense.logprobs_PV.double().gather(1, labels.ids_PK)
        nats_P = torch.lgamma(counts_PK + 1).sum(1) - math.lgamma(num_draws + 1)
        nats_P -= torch.where(counts_PK > 0, counts_PK * logprobs_PK, 0.0).sum(1)
        bits += float(nats_P.sum()) / math.log(2)
        positions += len(nats_P)
    return bits / 8 / positions


if __name__ == "__main__":
    main(Path(sys.argv[1]))
