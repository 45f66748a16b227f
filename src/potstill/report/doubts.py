"""What can't be right in a summary: figures that contradict one another are drawn, but never without saying so."""

from collections.abc import Iterator
from itertools import pairwise

from potstill.report import figures
from potstill.report.summary import Epoch, Model, Prediction, Run, Summary
from potstill.report.variants import base_of, label_of

__all__ = ["doubts"]

_ROUNDING = 1e-3


def doubts(run: Run) -> list[str]:
    """Every contradiction found, as a sentence each."""
    summary = run.summary
    found = [*run.notes, *_models(summary), *_training(summary), *_label(summary), *_stages(summary)]
    for prediction in summary.predictions:
        found += _prediction(prediction)
    return list(dict.fromkeys([*found, *_unreported(run)]))


def _models(summary: Summary) -> Iterator[str]:
    for model in summary.models:
        name = label_of(model)
        yield from _shares(name, accuracy=model.accuracy, agreement=model.agreement_with_teacher)
        if model.perplexity is not None and model.perplexity < 1:
            yield f"{name}: a perplexity of {figures.decimal(model.perplexity)} can't be; 1 is certainty."
        bounds = model.perplexity_interval_95
        if bounds is not None and (len(bounds) != 2 or None in bounds):
            yield f"{name}: its interval is not two numbers, so none is drawn."
        elif bounds is not None and model.perplexity is not None:
            low, high = bounds[0] or 0.0, bounds[1] or 0.0
            if not low <= model.perplexity <= high:
                yield f"{name}: the perplexity lies outside its own 95 % interval."
        if model.kl_to_teacher_nats is not None and model.kl_to_teacher_nats < -_ROUNDING:
            yield f"{name}: its KL to the teacher is negative, which no divergence is."
        yield from _sizes(model, summary)


def _sizes(model: Model, summary: Summary) -> Iterator[str]:
    if model.dtype == "float32" or model.bytes is None:
        return
    for other in summary.models:
        same = base_of(other) == base_of(model) and other.format == model.format and other.dtype == "float32"
        if same and other.bytes is not None and other.bytes <= model.bytes:
            yield f"{label_of(model)}: its file is no smaller than the float32 one."
            return


def _training(summary: Summary) -> Iterator[str]:
    training = summary.training
    for who, epochs in (("teacher", training.teacher), ("student", training.student), ("twin", training.twin)):
        numbers = [epoch.epoch for epoch in epochs]
        if any(later <= earlier for earlier, later in pairwise(numbers)):
            yield f"training of the {who}: the epochs are not in ascending order."
        for epoch in epochs:
            yield from _epoch(f"training of the {who}, epoch {epoch.epoch:g}", epoch)


def _epoch(name: str, epoch: Epoch) -> Iterator[str]:
    yield from _shares(name, accuracy=epoch.validation_accuracy, agreement=epoch.validation_agreement)


def _label(summary: Summary) -> Iterator[str]:
    example = summary.label_example
    if example is None or not example.entries:
        return
    total = sum(entry.probability or 0.0 for entry in example.entries) + (example.tail_mass or 0.0)
    if abs(total - 1) > 0.01:
        yield f"the soft label shown sums to {figures.probability(total)}, not to 1."


def _prediction(prediction: Prediction) -> Iterator[str]:
    for name, candidates in prediction.candidates.items():
        total = sum(candidate.probability or 0.0 for candidate in candidates)
        if total > 1 + _ROUNDING:
            yield f"the candidates of {name} sum to {figures.probability(total)}, more than 1."


def _stages(summary: Summary) -> Iterator[str]:
    spent = sum(stage.seconds or 0.0 for stage in summary.stages if not stage.cached)
    if summary.seconds is not None and spent > summary.seconds * 1.05 + 1:
        whole = figures.seconds(summary.seconds)
        yield f"the stages took {figures.seconds(spent)} together, more than the run's {whole}."


def _shares(name: str, **shares: float | None) -> Iterator[str]:
    for what, value in shares.items():
        if value is not None and not 0 <= value <= 1:
            yield f"{name}: the {what} is {figures.decimal(value)}, no share of one."


def _unreported(run: Run) -> Iterator[str]:
    """Warnings told outside of any stage; those of a stage the summary has chosen, leaving out stale ones."""
    known = {*run.summary.warnings, *run.summary.fallbacks}
    stages = {stage.name for stage in run.summary.stages}
    for event in run.events:
        kind, value = event.get("kind"), str(event.get("value"))
        if kind in {"warning", "fallback"} and event.get("stage") not in stages and value not in known:
            yield f"in the trace but not in the summary ({kind}): {value}"
