"""The student stage: build the small model, train it on the soft labels, and train its plain twins without them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from potstill.core.errors import BugError, RecipeError
from potstill.core.trace import Trace
from potstill.core.world import current
from potstill.data.facts import token_facts
from potstill.data.sequences import PackedSequences
from potstill.distill.hidden import HiddenMatching
from potstill.distill.objective import Objective
from potstill.distill.settings import CrossEntropy, Loss, hidden_states_of
from potstill.distill.student import build_student
from potstill.labels.store import LabelStore
from potstill.model.store import load_model, model_fingerprint, save_model, tokenizer_fingerprint
from potstill.train.loop import Training, TrainingText, fit
from potstill.train.precision import resolve_device, resolve_precision
from potstill.train.settings import Machine, StudentSettings, twins_wanted
from potstill.train.twins import check_teacher_is_better, epochs_of_equal_time

__all__ = ["LabelledText", "hidden_matching", "labelled_text", "train_student"]


@dataclass(frozen=True)
class LabelledText:
    """The student's rows and the held-out rows, with the teacher's labels of both where there is a teacher."""

    train: TrainingText
    validation: TrainingText

    def without_training_labels(self) -> "LabelledText":
        """The same text for a model that learns from the true tokens; it is still compared with the teacher."""
        return LabelledText(TrainingText(self.train.sequences), self.validation)


def labelled_text(inputs: Mapping[str, Path], num_sentences: int) -> LabelledText:
    """Open the student's text and, if there is a labels stage, its verified labels."""
    data = inputs["data"]
    train = PackedSequences.load(data, "train").first(num_sentences)
    validation = PackedSequences.load(data, "validation")
    if "labels" not in inputs:
        return LabelledText(TrainingText(train), TrainingText(validation))
    stores = {
        split: LabelStore.open(
            inputs["labels"] / split,
            sequences=sequences,
            teacher_fingerprint=model_fingerprint(inputs["teacher"] / "model"),
            tokenizer_fingerprint=tokenizer_fingerprint(data / "tokenizer"),
        )
        for split, sequences in (("train", train), ("validation", validation))
    }
    return LabelledText(TrainingText(train, stores["train"]), TrainingText(validation, stores["validation"]))


def train_student(
    settings: StudentSettings,
    machine: Machine,
    num_sentences: int,
    inputs: Mapping[str, Path],
    out: Path,
    trace: Trace,
) -> None:
    """Train the plain twin, look whether the teacher is better than it, and train the student; then the longer twin.

    All start from the same initial weights.

    Reads: data, and with a teacher: teacher, labels. Writes: model/, history.json; twin/ and twin-long/ with the same
    two, teacher_check.json and equal_time.json where they are wanted.
    """
    start = time.perf_counter()
    text = labelled_text(inputs, num_sentences)
    opening_s = time.perf_counter() - start
    tokens_NT = text.train.sequences.tokens_NT
    trace.input("text", shape=tokens_NT.shape, dtype=str(tokens_NT.dtype), example=tokens_NT[0, :12].tolist())
    plain, wanted = text.without_training_labels(), twins_wanted(settings, has_teacher="teacher" in inputs)
    train = partial(_train, machine=machine, inputs=inputs, trace=trace)
    twin: list[dict[str, Any]] = []
    if wanted:
        twin = train(settings, text=plain, out=out / "twin", who="twin", losses=[CrossEntropy()])
    if twin and "teacher" in inputs:
        device = resolve_device(machine.device)
        precision = resolve_precision(machine.precision, device)
        teacher = inputs["teacher"] / "model"
        check_teacher_is_better(
            teacher,
            text.validation,
            twin,
            out,
            trace,
            device=device,
            precision=precision,
            labels=text.train.labels,
        )
    student = train(settings, text=text, out=out, who="student", losses=settings.losses)
    if wanted == "both" and "labels" in inputs:
        epochs = epochs_of_equal_time(student, twin, inputs["labels"], out, trace, opening_s=opening_s)
        if epochs > settings.epochs:
            longer = settings.model_copy(update={"epochs": epochs})
            train(longer, text=plain, out=out / "twin-long", who="twin-long", losses=[CrossEntropy()])


def _train(
    settings: StudentSettings,
    *,
    machine: Machine,
    text: LabelledText,
    inputs: Mapping[str, Path],
    out: Path,
    trace: Trace,
    who: str,
    losses: Sequence[Loss],
) -> list[dict[str, Any]]:
    device = resolve_device(machine.device)
    precision = resolve_precision(machine.precision, device)
    model = _initial_student(settings, machine, inputs).to(device)  # type: ignore[arg-type] # transformers wraps torch's `to`
    trace.metric("parameters", model.num_parameters(), "1", model=who)
    training = Training(
        who=who,
        model=model,
        text=text.train,
        validation=text.validation,
        objective=Objective(losses),
        settings=settings,
        seed=machine.seed,
        precision=precision,
        parallel=machine.parallel,
        matching=hidden_matching(losses, model, inputs, seed=machine.seed),
    )
    history = fit(training, out, trace)
    if current().leads:
        save_model(model.cpu(), inputs["data"] / "tokenizer", out / "model")
    words = f"{model.config.num_hidden_layers} blocks, {model.config.hidden_size} wide"
    trace.output(who, shape=[model.num_parameters()], dtype="float32", example=words)
    return history


def hidden_matching(
    losses: Sequence[Loss], student: PreTrainedModel, inputs: Mapping[str, Path], *, seed: int
) -> HiddenMatching | None:
    """What compares the student's hidden states with its teacher's, on the student's device; None if no loss asks.

    Raises: RecipeError: several processes train together; projections are kept by one.
    """
    settings = hidden_states_of(losses)
    if settings is None:
        return None
    if "teacher" not in inputs:
        raise BugError("hidden states are to be matched without a teacher; the recipe should have been refused")
    if current().size > 1:
        raise RecipeError(
            f"hidden states are matched by one process, and this run has {current().size}",
            where="losses.hidden_states",
            next_step="run it without torchrun, or leave this loss out",
        )
    matching = HiddenMatching(settings, student, load_model(inputs["teacher"] / "model").to(student.device), seed=seed)  # type: ignore[arg-type] # transformers wraps torch's `to`
    return matching.to(student.device)


def _initial_student(settings: StudentSettings, machine: Machine, inputs: Mapping[str, Path]) -> PreTrainedModel:
    teacher = load_model(inputs["teacher"] / "model") if settings.start == "teacher" else None
    tokens = token_facts(inputs["data"])
    return build_student(
        settings.parameters,
        start=settings.start,
        teacher=teacher,
        vocabulary=tokens.vocabulary,
        seed=machine.seed,
        beginning_id=tokens.beginning_id,
        end_id=tokens.end_id,
    )
