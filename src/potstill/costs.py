"""What would each stage of a recipe make, and at what cost? Estimates, from the recipe alone.

Sizes of models and files are exact up to headers. Memory and minutes are estimates: training costs 6 operations a
weight and token, reading a teacher 2, both after a fixed time per token; how fast this machine multiplies is measured
for a moment, so a busy machine gives a slower plan, as it would give a slower run.
"""

import time
from dataclasses import dataclass, replace

import numpy as np

from potstill.data.settings import TrainTokenizer
from potstill.distill.chunks import positions_at_once
from potstill.distill.settings import hidden_states_of
from potstill.labels.settings import Dense, LabelKind, Sampled
from potstill.model.shapes import shape_for_budget
from potstill.quantize.memory import peak_bytes
from potstill.quantize.settings import calibration_of, keep_sensitive_of, label_of
from potstill.recipe import Recipe
from potstill.train.settings import LoadedTeacher, TrainedTeacher, twins_wanted

__all__ = ["COSTS", "PROCESS_BYTES", "Cost", "Sizes", "sizes_of"]

_S_PER_TOKEN = 1.25e-4
"""Beside the matrix products: what a token of training takes where matrices multiply at ``_REFERENCE``."""
_REFERENCE = 185e9
"""float32 operations a second of the machine on which ``_S_PER_TOKEN`` and ``_EFFICIENCY`` were measured."""
_EFFICIENCY = 1.6
"""Operations of training per measured float32 operation: bfloat16 where the hardware has it, less what is lost."""
PROCESS_BYTES = 500_000_000
_BYTES_PER_TRAINED_WEIGHT = 16
_FLOATS_PER_ACTIVATION, _FLOATS_PER_LOGIT = 60, 4
"""What training keeps for a position per column of a block, and for one of those whose logits live at once, per entry
of the vocabulary: logits, exponentials and gradient, each in float32 at most, and the label's part."""
_MORE_FOR_DENSE_LABELS = 3
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
_LINEARS_PER_BLOCK = 7
_S_OF_DATA, _S_PER_MODEL = 15.0, 8.0


@dataclass(frozen=True)
class Sizes:
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
class Cost:
    does: str
    shape: str
    parameters: int | None = None
    disk_bytes: float | None = None
    memory_bytes: float | None = None
    seconds: float | None = None


def sizes_of(recipe: Recipe) -> Sizes:
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
    return Sizes(vocabulary, teacher, student, None if rows == "all" else int(rows), _operations_per_s())


def _data(recipe: Recipe, sizes: Sizes) -> Cost:
    data = recipe.data
    held_out = data.validation_sentences + data.test_sentences
    rows = None if sizes.teacher_rows is None else max(sizes.teacher_rows, data.sentences) + held_out
    shape = f"[{rows or 'all'}, {data.tokens_per_sentence}] of {sizes.vocabulary:,} tokens"
    token_bytes = 2 if sizes.vocabulary <= 1 << 16 else 4
    disk = None if rows is None else rows * data.tokens_per_sentence * token_bytes
    return Cost(f"read {data.source.kind}", shape, disk_bytes=disk, seconds=_S_OF_DATA)


def _teacher(recipe: Recipe, sizes: Sizes) -> Cost:
    teacher, weights = recipe.teacher, sizes.teacher or 0
    if not isinstance(teacher, TrainedTeacher):
        return Cost("load", "a causal LM", weights, 0, PROCESS_BYTES + 4 * weights, 0.0)
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
    return Cost(does, _shape(teacher.parameters, sizes), weights, 4 * weights, memory, seconds)


def _labels(recipe: Recipe, sizes: Sizes) -> Cost:
    positions = (recipe.data.sentences + recipe.data.validation_sentences) * (recipe.data.tokens_per_sentence - 1)
    labels = recipe.labels
    assert labels is not None  # noqa: S101 - there is no such stage without them
    kept, record_bytes = _label_bytes(labels, sizes.vocabulary)
    weights = sizes.teacher or 0
    seconds = sizes.reading_s(weights, positions)
    memory = PROCESS_BYTES + 4 * weights + 3 * 4 * 32 * recipe.data.tokens_per_sentence * sizes.vocabulary
    return Cost(labels.kind, f"[≤ {positions:,}, {kept:,}] labels", None, positions * record_bytes, memory, seconds)


def _label_bytes(labels: LabelKind, vocabulary: int) -> tuple[int, int]:
    """What is kept of a position, and in about how many bytes; draws of a teacher that spreads its mass widely."""
    if isinstance(labels, Dense):
        return vocabulary, 2 * vocabulary
    if isinstance(labels, Sampled):
        return labels.draws, labels.draws + 2 + (labels.draws // 2 if labels.weighted else 0)
    return labels.k, labels.k * (4 if vocabulary <= 1 << 16 else 6) + 2


def _student(recipe: Recipe, sizes: Sizes) -> Cost:
    student, weights = recipe.student, sizes.student
    twins = twins_wanted(student, has_teacher=recipe.teacher is not None)
    models = {"both": 3, "steps": 2, None: 1}[twins]
    tokens = recipe.data.sentences * recipe.data.tokens_per_sentence * student.epochs
    memory = _training_bytes(
        recipe, sizes, student.parameters, student.micro_batch_sentences or student.batch_sentences
    )
    does = (
        f"train, {student.epochs} epochs" + {"both": ", and its two twins", "steps": ", and its twin", None: ""}[twins]
    )
    seconds = models * sizes.training_s(weights, tokens)
    if twins == "both" and seconds is not None:
        seconds += sizes.reading_s(sizes.teacher or 0, recipe.data.sentences * recipe.data.tokens_per_sentence)
    if hidden_states_of(student.losses) is not None:
        seconds += sizes.reading_s(sizes.teacher or 0, tokens)
        memory += 4 * (sizes.teacher or 0)
    return Cost(does, _shape(student.parameters, sizes), weights, models * 4 * weights, memory, seconds)


def _prune(recipe: Recipe, sizes: Sizes) -> Cost:
    prune = recipe.prune
    assert prune is not None  # noqa: S101 - there is no such stage without it
    weights = round(sizes.student * prune.keep_parameters)
    tokens = recipe.data.sentences * recipe.data.tokens_per_sentence * prune.epochs
    memory = _training_bytes(recipe, sizes, recipe.student.parameters, prune.batch_sentences)
    does = f"prune, heal {prune.epochs} epochs"
    return Cost(does, "fewer blocks, narrower MLPs", weights, 4 * weights, memory, sizes.training_s(weights, tokens))


def _quantize(recipe: Recipe, sizes: Sizes) -> Cost:
    weights = _variant_weights(recipe, sizes)
    disk = sum(_BYTES_PER_WEIGHT[scheme.scheme] for scheme in recipe.quantize) * weights
    does, makes = ", ".join(map(label_of, recipe.quantize)), f"{len(recipe.quantize)} schemes"
    shape = shape_for_budget(recipe.student.parameters, sizes.vocabulary)
    memory = PROCESS_BYTES + max(
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
    bases = 2 if recipe.prune else 1
    measured = [one.calibration_tokens for scheme in recipe.quantize if (one := keep_sensitive_of(scheme))]
    ways = _LINEARS_PER_BLOCK * shape.blocks // 2  # each linear's own way begins at its block
    readings = 3 * sizes.reading_s(sizes.student, sum(tokens)) + ways * sizes.reading_s(sizes.student, sum(measured))
    seconds = 1.0 + bases * readings
    return Cost(does, makes, None, disk, memory, seconds)


def _export(recipe: Recipe, sizes: Sizes) -> Cost:
    dtypes = ["float32", *(scheme.scheme for scheme in recipe.quantize)]
    weights = _variant_weights(recipe, sizes)
    disk = sum(_BYTES_PER_WEIGHT[dtype] for dtype in dtypes) * weights * len(recipe.export)
    formats = ", ".join(export.format for export in recipe.export)
    return Cost(
        formats, ", ".join(["float32", *map(label_of, recipe.quantize)]), None, disk, PROCESS_BYTES + 8 * weights, 1.0
    )


def _evaluate(recipe: Recipe, sizes: Sizes) -> Cost:
    bases = 2 if recipe.prune else 1
    models = bases * (1 + (1 + len(recipe.quantize)) * len(recipe.export)) + (1 if recipe.teacher else 0)
    tokens = min(recipe.evaluate.test_sentences, recipe.data.test_sentences) * recipe.data.tokens_per_sentence
    weights = sizes.teacher or sizes.student
    seconds = models * (sizes.reading_s(sizes.student, tokens) + (_S_PER_MODEL if recipe.evaluate.speed else 1.0))
    memory = PROCESS_BYTES + 4 * weights + 4 * 4 * 16 * recipe.data.tokens_per_sentence * sizes.vocabulary
    return Cost("measure", f"{models} models and files", None, 0, memory, seconds)


COSTS = {
    "01-data": _data,
    "02-teacher": _teacher,
    "03-labels": _labels,
    "04-student": _student,
    "05-prune": _prune,
    "06-quantize": _quantize,
    "07-export": _export,
    "08-evaluate": _evaluate,
}


def _variant_weights(recipe: Recipe, sizes: Sizes) -> float:
    return sizes.student * (1 + (recipe.prune.keep_parameters if recipe.prune else 0))


def _shape(budget: int, sizes: Sizes) -> str:
    shape = shape_for_budget(budget, sizes.vocabulary)
    return f"{shape.blocks} blocks of width {shape.width}, MLP {shape.mlp_width}"


def _training_bytes(recipe: Recipe, sizes: Sizes, budget: int, rows: int) -> float:
    """Weights with gradients and optimiser state, and for every position of a micro-batch activations and logits."""
    shape = shape_for_budget(budget, sizes.vocabulary)
    positions = rows * recipe.data.tokens_per_sentence
    activations = positions * _FLOATS_PER_ACTIVATION * shape.width * shape.blocks
    logits = min(positions, positions_at_once(sizes.vocabulary)) * _FLOATS_PER_LOGIT * sizes.vocabulary
    if isinstance(recipe.labels, Dense):
        logits *= _MORE_FOR_DENSE_LABELS
    return PROCESS_BYTES + _BYTES_PER_TRAINED_WEIGHT * shape.parameters + 4 * (activations + logits)


def _operations_per_s() -> float:
    """How many float32 operations a second this machine does in a matrix product, the best in a quarter of a second."""
    matrix = np.ones((768, 768), dtype=np.float32)
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < 0.25:
        start = time.perf_counter()
        np.matmul(matrix, matrix)
        best = min(best, time.perf_counter() - start)
    return float(2 * len(matrix) ** 3 / best)
