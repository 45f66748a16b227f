# ruff: noqa: RUF001 - typographic characters are meant
"""Questions about this very run, with answers worked out from its own figures.

Each function looks whether the run has the figures for its question and answers None if not; the page shows the
first three that could be asked.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from potstill.report import figures
from potstill.report.mistakes import Mistake, mistakes
from potstill.report.summary import Model, Summary
from potstill.report.training import trains_on_divergence
from potstill.report.variants import find

__all__ = ["GROUP_BYTES", "Question", "questions"]

GROUP_WEIGHTS = 32
GROUP_BYTES = 34
"""An int8 group: 32 codes of one byte and a float16 scale of two."""

_WANTED = 3


@dataclass(frozen=True)
class Question:
    """A question, the sums that lead to its answer line by line, the answer, and the mistakes it sorts, if any."""

    text: str
    answer: Sequence[str]
    sums: Sequence[str] = ()
    mistakes: Sequence[Mistake] = ()


def questions(summary: Summary) -> list[Question]:
    """Up to three questions, the ones that ask most of the reader first."""
    asked = [question for ask in _TABLE if (question := ask(summary)) is not None]
    return asked[:_WANTED]


def why_not_a_quarter(summary: Summary) -> Question | None:
    """Why int8 takes more than one byte where float32 takes four."""
    pair = _same_format(summary.models)
    if pair is None:
        return None
    full, small = pair
    if not (full.bytes and small.bytes and full.parameters and small.parameters):
        return None
    codes = small.parameters * GROUP_BYTES / GROUP_WEIGHTS
    rest_full, rest_small = full.bytes - 4 * full.parameters, small.bytes - codes
    sums = [
        f"float32: {small.parameters:,.0f} weights × 4 B = {4 * full.parameters:,.0f} B; the file has {full.bytes:,.0f} B",
        f"int8: 32 codes × 1 B + one scale × 2 B = 34 B for 32 weights; 34 ÷ (32 × 4) = {34 / 128:.4f}",
        f"{small.parameters:,.0f} weights × 34 ÷ 32 = {codes:,.0f} B; the file has {small.bytes:,.0f} B",
        f"measured: {small.bytes:,.0f} ÷ {full.bytes:,.0f} = {small.bytes / full.bytes:.4f}",
    ]
    answer = [
        "A quarter would be one byte instead of four. But a code from −127 to 127 means nothing without its step, so "
        f"each group of 32 weights carries a scale of two bytes: {34 / 128:.4f} of float32, before anything else."
    ]
    if rest_full > 0 and rest_small > 0:
        answer.append(
            f"Beyond that, {figures.size(rest_full)} of the float32 file and {figures.size(rest_small)} of the int8 "
            "file are no matrix at all: vocabulary, header, and vectors that stay in full precision. They don’t shrink, "
            "so the smaller the model, the further from a quarter."
        )
    ratio = f"{small.bytes / full.bytes:.3f}"
    return Question(f"Why is the int8 file {ratio} of the float32 file, and not exactly a quarter?", answer, sums)


def where_the_loss_came_from(summary: Summary) -> Question | None:
    """Which share of the lost quality is distilling's, which is rounding's, and whose mistakes the student makes."""
    teacher, student = find(summary.models, "teacher"), find(summary.models, "student", "float32")
    small = find(summary.models, "student", "int8")
    if teacher is None or student is None or small is None:
        return None
    if not (teacher.perplexity and student.perplexity and small.perplexity):
        return None
    distilling = math.log(student.perplexity / teacher.perplexity)
    rounding = math.log(small.perplexity / student.perplexity)
    sums = [
        f"distilling: ln({_p(student)} ÷ {_p(teacher)}) = {figures.signed_nats(distilling)} per token",
        f"int8: ln({_p(small)} ÷ {_p(student)}) = {figures.signed_nats(rounding)} per token",
        f"together: ln({_p(small)} ÷ {_p(teacher)}) = {figures.signed_nats(distilling + rounding)} per token",
    ]
    answer = ["Logarithms of perplexities add up, so the way from teacher to int8 file splits into two steps."]
    if distilling > 0 and abs(rounding) < distilling:
        per = f"{100 * abs(rounding) / distilling:.2g}\u202f%"
        answer.append(
            f"Becoming small cost {figures.nats(distilling)}; rounding changed {figures.nats(abs(rounding))}, {per} of it."
        )
    elif distilling <= 0:
        answer.append("Here the student is no worse than its teacher: what was lost, if anything, rounding lost.")
    found = mistakes(summary.predictions)
    if found:
        answer.append(
            "For single words it shows in who first went wrong. Of the prompts above whose true next word is known:"
        )
    return Question(
        "Which of the small model’s mistakes came from its teacher, which from distilling, which from int8?",
        answer,
        sums,
        found,
    )


def what_divergence_means(summary: Summary) -> Question | None:
    """What KL would be for a perfect copy, what it is here, and what for a model that knows nothing."""
    student = find(summary.models, "student", "float32") or find(summary.models, "student")
    if student is None or student.kl_to_teacher_nats is None:
        return None
    kl = student.kl_to_teacher_nats
    sums = [f"e^{kl:.3f} = {math.exp(kl):.3f}"]
    answer = [
        "Zero: KL is zero only where the two distributions are the same, and it can’t be negative.",
        f"At {figures.nats(kl)}, a word drawn from the teacher is on (geometric) average {math.exp(kl):.2f} times less "
        "likely to the student than to the teacher.",
    ]
    epochs = summary.training.student
    first, last = (epochs[0], epochs[-1]) if epochs else (None, None)
    if first and last and first is not last and trains_on_divergence(epochs):
        start, end = first.validation_loss_nats, last.validation_loss_nats
        if start is not None and end is not None:
            answer.append(
                f"Training moved the held-out loss from {figures.nats(start)} at epoch {first.epoch:g} to "
                f"{figures.nats(end)} at epoch {last.epoch:g}."
            )
    example, vocabulary = summary.label_example, (summary.data or {}).get("vocabulary")
    if example is not None and example.entropy_nats is not None and isinstance(vocabulary, int) and vocabulary > 1:
        ignorant = math.log(vocabulary) - example.entropy_nats
        sums.append(
            f"ln {vocabulary:,} − {example.entropy_nats:.3f} = {math.log(vocabulary):.3f} − {example.entropy_nats:.3f} "
            f"= {figures.nats(ignorant)}"
        )
        answer.append(
            f"And a student that knew nothing, every one of {vocabulary:,} tokens equally likely, would stand "
            f"{figures.nats(ignorant)} from the teacher at the position drawn under “Soft labels”: "
            "ln V minus the teacher’s entropy there."
        )
    return Question(
        f"The student’s KL to its teacher is {figures.nats(kl)}. What would it be for a perfect copy, and how far is this?",
        answer,
        sums,
    )


def was_it_worth_it(summary: Summary) -> Question | None:
    """What the teacher was worth, measured against the plain twin."""
    twin = summary.twin
    if twin is None or twin.difference_nats is None:
        return None
    ratio = math.exp(twin.difference_nats)
    better = "lower" if ratio < 1 else "higher"
    answer = [
        f"The twin is the same student, on the same sentences, without a teacher. The difference, student minus twin, is "
        f"{figures.signed_nats(twin.difference_nats)} per token: a perplexity {abs(1 - ratio) * 100:.1f}\u202f% {better}.",
        twin.verdict,
    ]
    return Question(
        "Was the teacher worth its trouble?",
        [part for part in answer if part],
        [f"e^{twin.difference_nats:+.3f} = {ratio:.3f}".replace("-", "\u2212")],
    )


def what_a_soft_label_says(summary: Summary) -> Question | None:
    """How much more a distribution says than its likeliest word."""
    example = summary.label_example
    if example is None or not example.entries or example.entropy_nats is None:
        return None
    top = max(example.entries, key=lambda entry: entry.probability or 0.0)
    if not top.probability:
        return None
    return Question(
        "What does the student lose if it is told only the teacher’s likeliest word?",
        [
            f"At the position drawn above, “{top.token.strip()}” has {figures.probability(top.probability)} of the mass. "
            f"The rest, {figures.probability(1 - top.probability)}, is what the teacher thinks of all other words; a "
            "one-hot label throws it away.",
            f"Its entropy, {figures.nats(example.entropy_nats)}, is that of "
            f"{math.exp(example.entropy_nats):.1f} equally likely words.",
        ],
        [f"1 − {top.probability:.3f} = {1 - top.probability:.3f}"],
    )


def what_perplexity_means(summary: Summary) -> Question | None:
    """Perplexity as a die with that many sides."""
    model = next((model for model in summary.models if model.perplexity), None)
    if model is None or not model.perplexity:
        return None
    return Question(
        f"The perplexity of {model.name} is {_p(model)}. What does that count?",
        [
            f"It is as unsure of the next token as someone who throws a fair die with {model.perplexity:.0f} sides: "
            "e to the mean loss in nats per token."
        ],
        [f"ln {_p(model)} = {figures.nats(math.log(model.perplexity))} per token"],
    )


_TABLE: tuple[Callable[[Summary], Question | None], ...] = (
    why_not_a_quarter,
    where_the_loss_came_from,
    what_divergence_means,
    was_it_worth_it,
    what_a_soft_label_says,
    what_perplexity_means,
)


def _same_format(models: Sequence[Model]) -> tuple[Model, Model] | None:
    for format_ in ("gguf", "safetensors"):
        full, small = find(models, "student", "float32", format_), find(models, "student", "int8", format_)
        if full is not None and small is not None:
            return full, small
    return None


def _p(model: Model) -> str:
    return "—" if model.perplexity is None else f"{model.perplexity:,.2f}"
