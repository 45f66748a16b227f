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
from potstill.report.training import buckets, divergence_of
from potstill.report.variants import find

__all__ = ["GROUP_BYTES", "Question", "questions"]

GROUP_WEIGHTS = 32
GROUP_BYTES = 34
"""An int8 group: 32 codes of one byte and a float16 scale of two."""

_WANTED = 3
_ROUNDING = 0.01


_QUARTER = (
    "A quarter would be one byte instead of four. But a code from −127 to 127 means nothing without its step, so each "
    f"group of 32 weights carries a scale of two bytes: {34 / 128:.4f} of float32, before anything else."
)


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
        f"float32: {full.parameters:,.0f} weights × 4 B = {4 * full.parameters:,.0f} B; the file: {full.bytes:,.0f} B",
        f"int8: 32 codes × 1 B + one scale × 2 B = 34 B for 32 weights; 34 ÷ (32 × 4) = {34 / 128:.4f}",
        f"{small.parameters:,.0f} weights × 34 ÷ 32 = {codes:,.0f} B; the file: {small.bytes:,.0f} B",
        f"measured: {small.bytes:,.0f} ÷ {full.bytes:,.0f} = {small.bytes / full.bytes:.4f}",
    ]
    answer = [_QUARTER]
    if rest_full > 0 and rest_small > 0:
        answer.append(
            f"What is left, {figures.size(rest_full)} of the float32 file and {figures.size(rest_small)} of the int8 "
            "file, is header, vocabulary, and vectors kept more precisely than the sum assumes. It doesn’t shrink, so "
            "the smaller the model, the further from a quarter."
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
        f"distilling: ln({_p(student)} ÷ {_p(teacher)}) = {_exact(distilling)}",
        f"int8: ln({_p(small)} ÷ {_p(student)}) = {_exact(rounding)}",
        f"together: ln({_p(small)} ÷ {_p(teacher)}) = {_exact(distilling + rounding)}",
    ]
    answer = ["Logarithms of perplexities add up, so the way from teacher to int8 file splits into two steps."]
    if distilling > 0 and abs(rounding) < distilling:
        part = figures.share(abs(rounding) / distilling, 2)
        answer.append(f"Becoming small cost the most; rounding changed as little as {part} of that.")
    elif distilling <= 0:
        answer.append("Here the student is no worse than its teacher: what was lost, if anything, rounding lost.")
    bounds = small.difference_to_base_interval_95
    if small.difference_to_base_nats is not None and bounds is not None and len(bounds) == 2:
        answer.append(
            "Measured position by position on the same text, the int8 file differs from what it was made from by "
            f"{figures.signed_nats(small.difference_to_base_nats)} per token (95 % interval "
            f"{figures.signed_nats(bounds[0])} to {figures.signed_nats(bounds[1])})."
        )
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
    sums = [f"e^{kl:.4f} = {math.exp(kl):.3f}"]
    answer = [
        "Zero: KL is zero only where the two distributions are the same, and it can’t be negative.",
        _less_likely(kl),
    ]
    epochs, bucketed = summary.training.student, buckets(summary.labels)
    if len(epochs) > 1:
        start, end = divergence_of(epochs[0]), divergence_of(epochs[-1])
        if start is not None and end is not None:
            seen = "Training sees less of it, all words a label doesn’t name counted as one; on" if bucketed else "On"
            answer.append(
                f"{seen} validation text it went from {figures.nats(start)} at epoch {epochs[0].epoch:g} to "
                f"{figures.nats(end)} at epoch {epochs[-1].epoch:g}."
            )
    ignorant = _ignorant(summary)
    if ignorant is not None:
        sums.append(ignorant.sums[0])
        answer += ignorant.answer
    return Question(
        f"The student’s KL to its teacher is {figures.nats(kl)}. What would it be for a perfect copy, and is this far?",
        answer,
        sums,
    )


def _less_likely(kl: float) -> str:
    return (
        f"At {figures.nats(kl)}, a word drawn from the teacher is on (geometric) average {math.exp(kl):.2f} times less "
        "likely to the student than to the teacher."
    )


def _ignorant(summary: Summary) -> Question | None:
    """How far a model that finds all tokens equally likely stands from the teacher, at the position drawn."""
    example, vocabulary = summary.label_example, (summary.data or {}).get("vocabulary")
    if example is None or example.tail_mass is None or not isinstance(vocabulary, int):
        return None
    kept = [entry.probability for entry in example.entries if entry.probability]
    others = vocabulary - len(example.entries)
    if not kept or others <= 0 or abs(sum(kept) + example.tail_mass - 1) > _ROUNDING:
        return None
    tail = example.tail_mass
    entropy = -sum(p * math.log(p) for p in kept) - (tail * math.log(tail) if tail else 0.0)
    distance = math.log(vocabulary) - entropy - tail * math.log(others)
    sums = f"ln {vocabulary:,} − {entropy:.3f} − {tail:.3f} × ln {others:,} = {distance:.3f} nats"
    answer = (
        f"And a student that knew nothing, to which all {vocabulary:,} tokens are equally likely, would stand at least "
        f"{figures.nats(distance)} from the teacher at the position drawn under “Soft labels”: ln V, minus the label’s "
        "entropy, minus what the tail bucket hides."
    )
    return Question("", [answer], [sums])


def was_it_worth_it(summary: Summary) -> Question | None:
    """What the teacher was worth, measured against the plain twin."""
    twin = summary.twin
    if twin is None or twin.difference_nats is None:
        return None
    ratio = math.exp(twin.difference_nats)
    better = "lower" if ratio < 1 else "higher"
    explained = (
        "The twin is the same student, on the same sentences, without a teacher. Student minus twin is "
        f"{figures.signed_nats(twin.difference_nats)} per token: a perplexity {figures.share(abs(1 - ratio))} {better}."
    )
    answer = [explained, twin.verdict]
    if twin.equal_time is not None:
        costs = "Asking the teacher took time too, in which a student without one would have gone on learning."
        answer += [f"{costs} {twin.equal_time.verdict}"]
    return Question(
        "Was the teacher worth its trouble?",
        [part for part in answer if part],
        [f"e^{twin.difference_nats:+.3f} = {ratio:.3f}".replace("-", "\u2212")],
    )


def what_a_soft_label_says(summary: Summary) -> Question | None:
    """How much more a distribution says than its likeliest word."""
    example = summary.label_example
    if example is None or not example.entries:
        return None
    top = max(example.entries, key=lambda entry: entry.probability or 0.0)
    if not top.probability:
        return None
    mass = figures.probability(top.probability)
    rest = (
        f"At the position drawn above, “{top.token.strip()}” has {mass} of the mass. The "
        f"rest, {figures.probability(1 - top.probability)}, is what the teacher thinks of all other words; a one-hot "
        "label throws it away."
    )
    return Question(
        "What does the student lose if it is told only the teacher’s likeliest word?",
        [rest],
        [f"1 − {top.probability:.3f} = {1 - top.probability:.3f}"],
    )


def what_perplexity_means(summary: Summary) -> Question | None:
    """Perplexity as a die with that many sides."""
    model = next((model for model in summary.models if model.perplexity), None)
    if model is None or not model.perplexity:
        return None
    answer = (
        f"It is as unsure of the next token as someone who throws a fair die with {model.perplexity:.0f} sides: e to "
        "the mean loss in nats per token."
    )
    return Question(
        f"The perplexity of {model.name} is {_p(model)}. What does that count?",
        [answer],
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


def _exact(value: float) -> str:
    """Four decimals, so that the sums can be checked by hand."""
    return f"{value:+.4f} nats per token".replace("-", "−")
