"""Bytes of a label against the loss of the student that learned from it, over seeds; and where its gradient points.

Shapes: B rows of a batch, P scored positions, V vocabulary.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distilling.prepare import Prepared, prepare
from distilling.teach import Online, floor_bits, head_and_tail, priority, stored
from torch import Tensor
from transformers import PreTrainedModel

from potstill.core.trace import Trace
from potstill.data.sequences import PackedSequences
from potstill.distill.divergences import forward_kl
from potstill.distill.objective import Objective
from potstill.distill.settings import CrossEntropy, ForwardKl
from potstill.distill.student import build_student
from potstill.labels.kinds import SampledLabels, SoftLabels, TopKLabels
from potstill.labels.settings import Sampled, TopK
from potstill.labels.store import LabelStore
from potstill.model.anatomy import hidden_states, logits_of
from potstill.train.loop import Training, TrainingText, fit
from potstill.train.precision import resolve_precision
from potstill.train.validation import validate

__all__ = ["WAYS", "fresh_student", "measure", "measure_bytes"]

DRAWS = (4, 8, 16, 32, 56, 64)
TOP = (1, 2, 4, 8, 16, 32)
WAYS: tuple[str, ...] = (
    "plain",
    "online",
    *(f"systematic-{draws}" for draws in DRAWS),
    *(f"top-{k}" for k in TOP),
    "multinomial-16",
    "head-4-tail-12",
    "priority-12",
)
_WARM_STEPS, _ANGLE_BATCHES, _VALIDATION_ROWS, _TEST_ROWS = 60, 12, 200, 600


def measure(recipe: str, folder: Path, seeds: range, ways: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A line for each way and seed: bytes, floor, gradient angle, held-out loss; what is done is kept."""
    prepared = prepare(recipe, folder)
    lines = folder / "lines.jsonl"
    done = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    angle, likeliest = None, _Likeliest(prepared)
    for seed in seeds:
        for way in ways:
            line = next((line for line in done if (line["way"], line["seed"]) == (way, seed)), None)
            if line is None:
                angle = angle or _Angle(prepared)
                text = prepared.text("train")
                labels, facts = labels_of_way(prepared, text, way, seed, likeliest)
                facts |= angle.of(labels, way) if labels is not None else {}
                facts |= learn(prepared, text, labels, folder / f"{way}-{seed}", seed)
                line = {"recipe": recipe, "way": way, "seed": seed, **facts}
                with lines.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            yield line


def measure_bytes(recipe: str, folder: Path) -> Iterator[dict[str, Any]]:
    """A line for each number of draws: bytes of a store of the teacher's whole text, and their floor."""
    prepared = prepare(recipe, folder)
    text = PackedSequences.load(prepared.inputs["data"], "train")
    angle = _Angle(prepared)
    for draws in (16, 50):
        kind = Sampled(draws=draws)
        way = stored(prepared, text, kind, seed=0, precision=resolve_precision("auto", "cpu"))
        facts = angle.of(way.labels, f"systematic-{draws}")
        over_floor = way.bytes_per_token / (facts["floor_bytes_per_token"] or math.nan)
        yield {
            "recipe": recipe,
            "draws": draws,
            "tokens": text.num_scored,
            "bytes_per_token": way.bytes_per_token,
            **facts,
            "over_floor": over_floor,
        }


class _Likeliest:
    """Top-k labels of every k from one store of the largest: fewer tokens kept is more mass in the bucket."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._store: LabelStore | None = None

    def keeping(self, k: int) -> "_Kept":
        """The labels of the k likeliest tokens."""
        if self._store is None:
            precision = resolve_precision("auto", "cpu")
            way = stored(self._prepared, self._prepared.text("train"), TopK(k=max(TOP)), seed=0, precision=precision)
            self._store = way.labels
        return _Kept(self._store, k)


@dataclass(frozen=True)
class _Kept:
    store: LabelStore
    k: int

    def read(self, rows_B: Any) -> TopKLabels:  # noqa: ANN401 - as a store reads
        labels = self.store.read(rows_B)
        assert isinstance(labels, TopKLabels)  # noqa: S101 - it was made so
        rest_P = labels.logprobs_PK[:, self.k :].exp().sum(1)
        return TopKLabels(labels.ids_PK[:, : self.k], labels.logprobs_PK[:, : self.k], labels.tail_mass_P + rest_P)


def labels_of_way(
    prepared: Prepared, text: PackedSequences, way: str, seed: int, likeliest: _Likeliest
) -> tuple[Any, dict[str, Any]]:
    """What the student learns from; None is the true tokens. And what it takes in bytes, where it is kept."""
    precision = resolve_precision("auto", "cpu")
    name, _, number = way.partition("-")
    if way == "plain":
        return None, {}
    if name in {"systematic", "multinomial"}:
        kept = stored(prepared, text, Sampled(draws=int(number), sampling=name), seed=seed, precision=precision)  # type: ignore[arg-type]
        return kept.labels, {"bytes_per_token": kept.bytes_per_token}
    if name == "top":
        k, bits = int(number), math.ceil(math.log2(prepared.tokens.vocabulary))
        packed = {"bytes_per_token": 6 * k, "ids_alone_bytes_per_token": k * bits / 8}
        return likeliest.keeping(k), packed
    estimates = {"head-4-tail-12": head_and_tail(4, 12), "priority-12": priority(12, prepared.tokens.vocabulary)}
    return Online(prepared, text, precision=precision, estimate=estimates.get(way), seed=seed), {}


def learn(prepared: Prepared, text: PackedSequences, labels: Any, scratch: Path, seed: int) -> dict[str, Any]:  # noqa: ANN401 - a store or a teacher
    """Train the recipe's student and measure its best epoch on the test rows."""
    settings, precision = prepared.recipe.student, resolve_precision("auto", "cpu")
    student = fresh_student(prepared, seed)
    held_out = prepared.text("validation").first(_VALIDATION_ROWS)
    training = Training(
        who="student",
        model=student,
        text=TrainingText(text, labels),
        validation=TrainingText(held_out, Online(prepared, held_out, precision=precision)),  # type: ignore[arg-type]
        objective=Objective([CrossEntropy() if labels is None else ForwardKl()]),
        settings=settings,
        seed=seed,
        precision=precision,
    )
    history = fit(training, scratch, Trace())
    test = prepared.text("test").first(_TEST_ROWS)
    measured = validate(student, test, Online(prepared, test, precision=precision), precision=precision)  # type: ignore[arg-type]
    for file in scratch.glob("*"):
        file.unlink()
    scratch.rmdir()
    return {
        "test_nats": measured["validation_cross_entropy_nats"],
        "test_kl_nats": measured["validation_kl_nats"],
        "test_agreement": measured["validation_agreement"],
        "epoch_nats": [entry["validation_cross_entropy_nats"] for entry in history],
        "parameters": student.num_parameters(),
        "tokens": text.num_scored,
    }


def fresh_student(prepared: Prepared, seed: int) -> PreTrainedModel:
    """The recipe's student before its first step."""
    vocabulary = prepared.tokens.vocabulary
    parameters = prepared.recipe.student.parameters
    return build_student(parameters, start="scratch", teacher=None, vocabulary=vocabulary, seed=seed)


class _Angle:
    """Compares gradients with those of the whole distribution, at a student that has learned a little from it."""

    def __init__(self, prepared: Prepared) -> None:
        self.text = prepared.text("train")
        self.online = Online(prepared, self.text, precision="float32")
        self.student = fresh_student(prepared, seed=1000)
        size = prepared.recipe.student.batch_sentences
        optimizer = torch.optim.AdamW(self.student.parameters(), lr=2e-3)
        for step in range(_WARM_STEPS):
            rows_B = np.arange(step * size, (step + 1) * size)
            self._loss(rows_B, self.online.read(rows_B)).backward()
            optimizer.step()
            optimizer.zero_grad()
        self.batches = [np.arange(first, first + size) for first in range(0, _ANGLE_BATCHES * size, size)]
        self.exact = [self._gradient(rows_B, self.online.read(rows_B)) for rows_B in self.batches]

    def of(self, labels: Any, way: str) -> Mapping[str, float | None]:  # noqa: ANN401 - a store or a teacher
        """Mean angle over the batches and, for ways that sample, the floor of their bytes."""
        angles, bits = [], []
        for rows_B, exact in zip(self.batches, self.exact, strict=True):
            given = labels.read(rows_B)
            cosine = torch.nn.functional.cosine_similarity(exact, self._gradient(rows_B, given), dim=0)
            angles.append(math.degrees(math.acos(min(1.0, float(cosine)))))
            if isinstance(given, SampledLabels):
                draws = int(way.split("-")[1]) if way.startswith(("systematic", "multinomial")) else None
                bits.append(floor_bits(self.online.read(rows_B).logprobs_PV, given, draws=draws))  # type: ignore[union-attr]
        floor = sum(bits) / len(bits) / 8 if bits else None
        return {"angle_degrees": sum(angles) / len(angles), "floor_bytes_per_token": floor}

    def _loss(self, rows_B: Any, labels: SoftLabels) -> Tensor:  # noqa: ANN401 - row numbers
        tokens, scored = self.text.rows(rows_B)
        hidden_PD = hidden_states(self.student, torch.from_numpy(tokens))[torch.from_numpy(scored)]
        return forward_kl(logits_of(self.student, hidden_PD), labels).mean()

    def _gradient(self, rows_B: Any, labels: SoftLabels) -> Tensor:  # noqa: ANN401 - row numbers
        self.student.zero_grad()
        self._loss(rows_B, labels).backward()
        parameters = (parameter for parameter in self.student.parameters() if parameter.grad is not None)
        return torch.cat([parameter.grad.flatten().double() for parameter in parameters])  # type: ignore[union-attr]
