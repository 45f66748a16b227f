"""What would a run do, and what would it cost? Estimated from the recipe alone; nothing is written.

Sizes of models and files are exact up to headers. Memory and minutes are estimates: training costs 6 operations a
weight and token, reading a teacher 2, both after a fixed time per token; how fast this machine multiplies is measured
for a moment, so a busy machine gives a slower plan, as it would give a slower run.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from potstill.core.artefact import read_manifest
from potstill.data.settings import TrainTokenizer
from potstill.labels.settings import Dense
from potstill.model.shapes import shape_for_budget
from potstill.quantize.memory import peak_bytes
from potstill.quantize.settings import calibration_of, label_of
from potstill.recipe import Recipe
from potstill.stages import Stage, stage_fingerprint, stages_of
from potstill.train.settings import LoadedTeacher, TrainedTeacher

__all__ = ["disk_bytes_to_write", "plan"]

_S_PER_TOKEN = 1.25e-4
"""Beside the matrix products: what a token of training takes where matrices multiply at ``_REFERENCE``."""
_REFERENCE = 185e9
"""float32 operations a second of the machine on which ``_S_PER_TOKEN`` and ``_EFFICIENCY`` were measured."""
_EFFICIENCY = 1.6
"""Operations of training per measured float32 operation: bfloat16 where the hardware has it, less what is lost."""
_PROCESS_BYTES = 500_000_000
_BYTES_PER_TRAINED_WEIGHT = 16
_FLOATS_PER_ACTIVATION, _FLOATS_PER_LOGIT = 60, 20
"""What training keeps for a position: per column of a block, and per entry of the vocabulary; measured at 3 M."""
_BYTES_PER_WEIGHT = {
    "float32": 4.0,
    "float16": 2.0,
    "bfloat16": 2.0,
    "int8": 34 / 32,
    "int8-channel": 1.0,
    "int4": 18 / 32,
    "q3_k": 110 / 256,
    "q2_k": 84 / 256,
}
_S_OF_DATA, _S_PER_MODEL = 15.0, 8.0


@dataclass(frozen=True)
class _Sizes:
    """What the estimates are made of; None where only the run itself finds out."""

    vocabulary: int
    teacher: int | None
    student: int
    teacher_rows: int | None
    speed: float

    def training_s(self, weights: int, tokens: int) -> float:
        return tokens * (_S_PER_TOKEN * _REFERENCE / self.speed + 6 * weights / (_EFFICIENCY * self.speed))

    def reading_s(self, weights: int, tokens: int) -> float:
        return self.training_s(weights, tokens) / 3


@dataclass(frozen=True)
class _Cost:
    does: str
    shape: str
    parameters: int | None = None
    disk_bytes: float | None = None
    memory_bytes: float | None = None
    seconds: float | None = None


def plan(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Every stage with what it makes and costs, and whether ``out`` holds it already.

    Raises: PotstillError: what the run would fail on at once, such as a file of the text that isn't there.
    """
    sizes = _sizes_of(recipe)
    states = _states(recipe, out)
    rows: list[dict[str, Any]] = []
    memory_bytes = 0
    for stage in stages_of(recipe):
        cost = _COSTS[stage.name](recipe, sizes)
        memory_bytes = max(
            memory_bytes, round(cost.memory_bytes or _PROCESS_BYTES)
        )  # one process; it gives little back
        minutes = None if cost.seconds is None else round(cost.seconds / 60, 1)
        rows.append(
            {
                "stage": stage.name,
                "does": cost.does,
                "makes": cost.shape,
                "parameters": cost.parameters,
                "disk_bytes": None if cost.disk_bytes is None else round(cost.disk_bytes),
                "memory_bytes": memory_bytes,
                "minutes": 0.0 if states[stage.name] == "done" else minutes,
                "state": states[stage.name],
            }
        )
    known = [row["minutes"] for row in rows if row["minutes"] is not None]
    return {
        "recipe": recipe.name,
        "run_directory": str(out),
        "stages": rows,
        "minutes": round(sum(known), 1),
        "minutes_unknown": [row["stage"] for row in rows if row["minutes"] is None],
        "memory_bytes": memory_bytes,
        "disk_bytes": sum(row["disk_bytes"] or 0 for row in rows),
    }


def disk_bytes_to_write(recipe: Recipe, out: Path) -> dict[str, int]:
    """About how much each stage that ``out`` doesn't hold yet will write, as far as the recipe tells: stage → bytes."""
    sizes = _sizes_of(recipe)
    missing = [stage.name for stage in stages_of(recipe) if read_manifest(out / "stages" / stage.name) is None]
    return {name: round(_COSTS[name](recipe, sizes).disk_bytes or 0) for name in missing}


def _states(recipe: Recipe, out: Path) -> Mapping[str, str]:
    """Whether each stage is done in ``out``, was begun, or is still to do."""
    fingerprints: dict[str, str] = {}
    states: dict[str, str] = {}
    for stage in stages_of(recipe):
        inputs = {role: fingerprints[name] for role, name in stage.inputs.items()}
        fingerprints[stage.name] = stage_fingerprint(stage, recipe, inputs)
        states[stage.name] = _state(stage, out, fingerprints[stage.name])
    return states


def _state(stage: Stage, out: Path, fingerprint: str) -> str:
    directory = out / "stages" / stage.name
    manifest = read_manifest(directory)
    if manifest is not None:
        return "done" if manifest.fingerprint == fingerprint else "changed"
    return "begun" if directory.exists() else "to do"


def _sizes_of(recipe: Recipe) -> _Sizes:
    tokenizer = recipe.data.tokenizer
    teacher: int | None = None
    vocabulary = tokenizer.vocabulary if isinstance(tokenizer, TrainTokenizer) else 0
    if isinstance(recipe.teacher, LoadedTeacher):
        from potstill.model.inspect import inspect_config

        inspection = inspect_config(recipe.teacher.model)
        teacher, vocabulary = inspection["parameters"], vocabulary or inspection["vocabulary"]
    elif isinstance(recipe.teacher, TrainedTeacher):
        teacher = shape_for_budget(recipe.teacher.parameters, vocabulary).parameters
    rows = recipe.data_stage.teacher_sentences or recipe.data.sentences
    student = shape_for_budget(recipe.student.parameters, vocabulary).parameters
    return _Sizes(vocabulary, teacher, student, None if rows == "all" else int(rows), _operations_per_s())


def _data(recipe: Recipe, sizes: _Sizes) -> _Cost:
    data = recipe.data
    held_out = data.validation_sentences + data.test_sentences
    rows = None if sizes.teacher_rows is None else max(sizes.teacher_rows, data.sentences) + held_out
    shape = f"[{rows or 'all'}, {data.tokens_per_sentence}] of {sizes.vocabulary:,} tokens"
    token_bytes = 2 if sizes.vocabulary <= 1 << 16 else 4
    disk = None if rows is None else rows * data.tokens_per_sentence * token_bytes
    return _Cost(f"read {data.source.kind}", shape, disk_bytes=disk, seconds=_S_OF_DATA)


def _teacher(recipe: Recipe, sizes: _Sizes) -> _Cost:
    teacher, weights = recipe.teacher, sizes.teacher or 0
    if not isinstance(teacher, TrainedTeacher):
        return _Cost("load", "a causal LM", weights, 0, _PROCESS_BYTES + 4 * weights, 0.0)
    rows = sizes.teacher_rows
    does, seconds = f"train, {teacher.epochs} epochs", None
    if rows is not None:
        seconds = sizes.training_s(weights, rows * recipe.data.tokens_per_sentence * teacher.epochs)
    if teacher.grow_from is not None:
        grow = teacher.grow_from
        shallow = replace(shape_for_budget(teacher.parameters, sizes.vocabulary), blocks=grow.blocks).parameters
        does = f"train, {grow.epochs} epochs with {grow.blocks} blocks, then {teacher.epochs} with all"
        if rows is not None and seconds is not None:
            seconds += sizes.training_s(shallow, rows * recipe.data.tokens_per_sentence * grow.epochs)
    memory = _training_bytes(
        recipe, sizes, teacher.parameters, teacher.micro_batch_sentences or teacher.batch_sentences
    )
    return _Cost(does, _shape(teacher.parameters, sizes), weights, 4 * weights, memory, seconds)


def _labels(recipe: Recipe, sizes: _Sizes) -> _Cost:
    positions = (recipe.data.sentences + recipe.data.validation_sentences) * (recipe.data.tokens_per_sentence - 1)
    labels = recipe.labels
    assert labels is not None  # noqa: S101 - there is no such stage without them
    id_bytes = 2 if sizes.vocabulary <= 1 << 16 else 4
    record_bytes = 2 * sizes.vocabulary if isinstance(labels, Dense) else labels.k * (id_bytes + 2) + 2
    kept = sizes.vocabulary if isinstance(labels, Dense) else labels.k
    weights = sizes.teacher or 0
    seconds = sizes.reading_s(weights, positions)
    memory = _PROCESS_BYTES + 4 * weights + 3 * 4 * 32 * recipe.data.tokens_per_sentence * sizes.vocabulary
    return _Cost(labels.kind, f"[≤ {positions:,}, {kept:,}] labels", None, positions * record_bytes, memory, seconds)


def _student(recipe: Recipe, sizes: _Sizes) -> _Cost:
    student, weights = recipe.student, sizes.student
    models = 2 if student.twin or (student.twin is None and recipe.labels is not None) else 1
    tokens = recipe.data.sentences * recipe.data.tokens_per_sentence * student.epochs
    memory = _training_bytes(
        recipe, sizes, student.parameters, student.micro_batch_sentences or student.batch_sentences
    )
    does = f"train, {student.epochs} epochs" + (", and its twin" if models == 2 else "")
    seconds = models * sizes.training_s(weights, tokens)
    return _Cost(does, _shape(student.parameters, sizes), weights, models * 4 * weights, memory, seconds)


def _prune(recipe: Recipe, sizes: _Sizes) -> _Cost:
    prune = recipe.prune
    assert prune is not None  # noqa: S101 - there is no such stage without it
    weights = round(sizes.student * prune.keep_parameters)
    tokens = recipe.data.sentences * recipe.data.tokens_per_sentence * prune.epochs
    memory = _training_bytes(recipe, sizes, recipe.student.parameters, prune.batch_sentences)
    does = f"prune, heal {prune.epochs} epochs"
    return _Cost(does, "fewer blocks, narrower MLPs", weights, 4 * weights, memory, sizes.training_s(weights, tokens))


def _quantize(recipe: Recipe, sizes: _Sizes) -> _Cost:
    weights = _variant_weights(recipe, sizes)
    disk = sum(_BYTES_PER_WEIGHT[scheme.scheme] for scheme in recipe.quantize) * weights
    does, makes = ", ".join(map(label_of, recipe.quantize)), f"{len(recipe.quantize)} schemes"
    shape = shape_for_budget(recipe.student.parameters, sizes.vocabulary)
    memory = _PROCESS_BYTES + max(
        peak_bytes(
            scheme,
            embedding=shape.vocabulary * shape.width,
            block=shape.block_parameters,
            width=shape.width,
            mlp_width=shape.mlp_width,
        )
        for scheme in recipe.quantize
    )
    tokens = [method.calibration_tokens for scheme in recipe.quantize if (method := calibration_of(scheme))]
    seconds = 1.0 + (2 if recipe.prune else 1) * 3 * sizes.reading_s(sizes.student, sum(tokens))
    return _Cost(does, makes, None, disk, memory, seconds)


def _export(recipe: Recipe, sizes: _Sizes) -> _Cost:
    dtypes = ["float32", *(scheme.scheme for scheme in recipe.quantize)]
    weights = _variant_weights(recipe, sizes)
    disk = sum(_BYTES_PER_WEIGHT[dtype] for dtype in dtypes) * weights * len(recipe.export)
    formats = ", ".join(export.format for export in recipe.export)
    return _Cost(
        formats, ", ".join(["float32", *map(label_of, recipe.quantize)]), None, disk, _PROCESS_BYTES + 8 * weights, 1.0
    )


def _evaluate(recipe: Recipe, sizes: _Sizes) -> _Cost:
    bases = 2 if recipe.prune else 1
    models = bases * (1 + (1 + len(recipe.quantize)) * len(recipe.export)) + (1 if recipe.teacher else 0)
    tokens = min(recipe.evaluate.test_sentences, recipe.data.test_sentences) * recipe.data.tokens_per_sentence
    weights = sizes.teacher or sizes.student
    seconds = models * (sizes.reading_s(sizes.student, tokens) + (_S_PER_MODEL if recipe.evaluate.speed else 1.0))
    memory = _PROCESS_BYTES + 4 * weights + 4 * 4 * 16 * recipe.data.tokens_per_sentence * sizes.vocabulary
    return _Cost("measure", f"{models} models and files", None, 0, memory, seconds)


_COSTS = {
    "01-data": _data,
    "02-teacher": _teacher,
    "03-labels": _labels,
    "04-student": _student,
    "05-prune": _prune,
    "06-quantize": _quantize,
    "07-export": _export,
    "08-evaluate": _evaluate,
}


def _variant_weights(recipe: Recipe, sizes: _Sizes) -> float:
    return sizes.student * (1 + (recipe.prune.keep_parameters if recipe.prune else 0))


def _shape(budget: int, sizes: _Sizes) -> str:
    shape = shape_for_budget(budget, sizes.vocabulary)
    return f"{shape.blocks} blocks of width {shape.width}, MLP {shape.mlp_width}"


def _training_bytes(recipe: Recipe, sizes: _Sizes, budget: int, rows: int) -> float:
    """Weights with gradients and optimiser state, and for every position of a micro-batch activations and logits."""
    shape = shape_for_budget(budget, sizes.vocabulary)
    per_position = _FLOATS_PER_ACTIVATION * shape.width * shape.blocks + _FLOATS_PER_LOGIT * sizes.vocabulary
    positions = rows * recipe.data.tokens_per_sentence
    return _PROCESS_BYTES + _BYTES_PER_TRAINED_WEIGHT * shape.parameters + 4 * positions * per_position


def _operations_per_s() -> float:
    """How many float32 operations a second this machine does in a matrix product, the best in a quarter of a second."""
    matrix = np.ones((768, 768), dtype=np.float32)
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < 0.25:
        start = time.perf_counter()
        np.matmul(matrix, matrix)
        best = min(best, time.perf_counter() - start)
    return float(2 * len(matrix) ** 3 / best)
