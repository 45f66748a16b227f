# ruff: noqa: RUF001 - typographic characters are meant
"""The run in a sentence or three, made of its figures and of nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass

from potstill.report import figures
from potstill.report.summary import Model, Summary
from potstill.report.variants import base_of, find, shipped

__all__ = ["Headline", "headline"]


@dataclass(frozen=True)
class Headline:
    """The sentence at the top, what stands under it, and which of its terms want explaining there."""

    title: str
    below: Sequence[str]
    agreement: bool
    perplexity: bool
    twin: bool


def headline(summary: Summary) -> Headline:
    """Say what became what, how much smaller, and how alike; leave out what was not measured."""
    teacher = find(summary.models, "teacher")
    student = find(summary.models, "student", "float32") or find(summary.models, "student")
    sentences = [_became(teacher, student)]
    smallest = shipped(summary.models)
    if smallest is not None:
        sentences.append(_file(smallest, teacher))
    quality, worth = _quality(summary), _worth(summary)
    return Headline(
        title=" ".join(sentence for sentence in sentences if sentence),
        below=[sentence for sentence in (quality, worth, _cost(summary)) if sentence],
        agreement=smallest is not None and smallest.agreement_with_teacher is not None,
        perplexity=bool(quality),
        twin=bool(worth),
    )


def _became(teacher: Model | None, student: Model | None) -> str:
    if student is None or student.parameters is None:
        return "A run without a measured student." if student is None else "A student of unrecorded size."
    small = f"{figures.count(student.parameters, 2)}‑parameter student"
    if teacher is None or teacher.parameters is None:
        return f"A {small}."
    return f"A {figures.count(teacher.parameters, 2)}‑parameter teacher became a {small}."


def _file(model: Model, teacher: Model | None) -> str:
    base = base_of(model)
    owner = "Its" if base == "student" else f"The {base} student’s" if base == "pruned" else f"The {base}’s"
    parts = [f"{owner} {model.dtype} file is {figures.size(model.bytes, 2)}"]
    if teacher is not None and teacher.bytes and model.bytes and teacher.bytes > model.bytes:
        parts.append(f"{figures.times(teacher.bytes / model.bytes)} times smaller than the teacher’s")
    agreement = model.agreement_with_teacher
    if agreement is not None:
        said = f"and agrees with the teacher on {figures.share(agreement, 0)} of held-out tokens"
        return ", ".join(parts) + (", " if len(parts) > 1 else " ") + said + "."
    return ", ".join(parts) + "."


def _cost(summary: Summary) -> str:
    if summary.seconds is None:
        return ""
    peak = summary.peak_memory_bytes
    memory = "" if peak is None else f" and at most {figures.size(peak)} of memory"
    cached = sum(stage.cached for stage in summary.stages)
    kept = f" ({cached} of {len(summary.stages)} stages were kept from before)" if cached else ""
    return f"Making it took {figures.seconds(summary.seconds)}{memory}{kept}."


def _quality(summary: Summary) -> str:
    coded = dict.fromkeys(model.dtype for model in summary.models if base_of(model) == "student" and model.dtype)
    chosen = [
        (name, find(summary.models, base, dtype))
        for name, base, dtype in (
            ("the teacher", "teacher", None),
            ("the student", "student", "float32"),
            *((f"its {dtype} file", "student", dtype) for dtype in coded if dtype not in _FLOATS),
            ("the pruned student", "pruned", "float32"),
        )
    ]
    said = [
        f"{figures.decimal(model.perplexity)} for {name}"
        for name, model in chosen
        if model is not None and model.perplexity is not None
    ]
    return f"Perplexity on held-out text: {', '.join(said)}." if said else ""


def _worth(summary: Summary) -> str:
    twin = summary.twin
    if twin is None or twin.difference_nats is None:
        return ""
    if any(char.isdigit() for char in twin.verdict):
        return f"{twin.verdict} {twin.equal_time.verdict if twin.equal_time else ''}".rstrip()
    interval = ""
    bounds = twin.interval_95
    if bounds is not None and len(bounds) == 2 and None not in bounds:
        low = figures.signed_nats(bounds[0]).removesuffix(f"{_GAP}nats")
        interval = f" (95{_GAP}% interval {low} to {figures.signed_nats(bounds[1])})"
    verdict = f" {twin.verdict[0].upper()}{twin.verdict[1:].rstrip('.')}." if twin.verdict else ""
    return (
        "Against its plain twin, the same student on the same sentences without a teacher: "
        f"{figures.signed_nats(twin.difference_nats)} per held-out token{interval}; less is better.{verdict}"
    )


_GAP = "\u00a0"
_FLOATS = ("float32", "float16", "bfloat16")
