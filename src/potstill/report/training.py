# ruff: noqa: RUF001 - typographic characters are meant
"""How each model learned: curves that share an axis only where they share a quantity, and a table an epoch a row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from potstill.report import figures
from potstill.report.charts import Curve, curves
from potstill.report.summary import Epoch, Labels, Training

__all__ = [
    "Panel",
    "TrainingTable",
    "buckets",
    "cross_entropy_of",
    "divergence_of",
    "panels",
    "tables",
    "trains_on_divergence",
]

_TITLES = {
    "teacher": "The teacher",
    "student": "The student",
    "twin": "The plain twin",
    "pruned": "The pruned student, healing",
}


@dataclass(frozen=True)
class Panel:
    """One chart with its title and the sentence under it."""

    title: str
    unit: str
    drawing: Markup
    caption: str = ""


@dataclass(frozen=True)
class TrainingTable:
    """One model's epochs; ``agreement``, ``cross_entropy`` and ``observed`` say which columns it has."""

    who: str
    title: str
    epochs: Sequence[Epoch]
    loss_name: str
    agreement: bool
    cross_entropy: bool
    observed: bool


def trains_on_divergence(epochs: Sequence[Epoch]) -> bool:
    """Whether these epochs' loss is the distance to the teacher alone: a mixture shares no axis with either part."""
    return bool(epochs) and all(epoch.loss == "forward_kl" for epoch in epochs)


def buckets(labels: Labels | None) -> bool:
    """Whether the labels name only some tokens, so that a KL measured on them is a lower bound of the full one."""
    return labels is not None and labels.kind == "top_k"


def divergence_of(epoch: Epoch) -> float | None:
    """KL(teacher || student) on held-out text, under whichever key the run wrote it."""
    if epoch.validation_kl_nats is not None:
        return epoch.validation_kl_nats
    return epoch.validation_loss_nats if epoch.loss == "forward_kl" else None


def cross_entropy_of(epoch: Epoch) -> float | None:
    """Cross-entropy on held-out text, under whichever key the run wrote it."""
    if epoch.validation_cross_entropy_nats is not None:
        return epoch.validation_cross_entropy_nats
    return epoch.validation_loss_nats if epoch.loss == "cross_entropy" else None


def panels(training: Training, labels: Labels | None) -> list[Panel]:
    """The charts there are figures for: divergence, cross-entropy, agreement, accuracy."""
    found = [_divergence(training, labels), _cross_entropy(training), _agreement(training), _accuracy(training)]
    return [panel for panel in found if panel is not None]


def tables(training: Training) -> list[TrainingTable]:
    """A table for each model that was trained here, the student first: it is what the run is about."""
    parts = [
        ("student", training.student),
        ("teacher", training.teacher),
        ("twin", training.twin),
        ("pruned", training.pruned),
    ]
    return [
        TrainingTable(
            who=who,
            title=_TITLES[who],
            epochs=epochs,
            loss_name=_loss_name(epochs),
            agreement=any(epoch.validation_agreement is not None for epoch in epochs),
            cross_entropy=any(
                epoch.loss != "cross_entropy" and cross_entropy_of(epoch) is not None for epoch in epochs
            ),
            observed=any(epoch.observation for epoch in epochs),
        )
        for who, epochs in parts
        if epochs
    ]


def _loss_name(epochs: Sequence[Epoch]) -> str:
    names = list(dict.fromkeys(epoch.loss for epoch in epochs if epoch.loss))
    return ", ".join(names).replace("_", " ") if names else "loss, its divergence not named by the run"


def _divergence(training: Training, labels: Labels | None) -> Panel | None:
    student = training.student
    lines = [_curve("held-out", "var(--student)", student, divergence_of)]
    if not lines[0].points:
        return None
    if trains_on_divergence(student):
        lines.append(_curve("training", "var(--faint)", student, lambda epoch: epoch.train_loss_nats, dashed=True))
    bucket = ", all words the labels don’t name counted as one: never more than the full KL" if buckets(labels) else ""
    caption = f"KL from teacher to student{bucket}. Zero would mean: the same distribution everywhere."
    return _panel("divergence", "Distance to the teacher", "nats per token", lines, figures.nats, caption)


def _cross_entropy(training: Training) -> Panel | None:
    lines = [
        _curve("teacher", "var(--teacher)", training.teacher, cross_entropy_of),
        _curve("twin", "var(--twin)", training.twin, cross_entropy_of),
        _curve("student", "var(--student)", training.student, cross_entropy_of),
    ]
    caption = "Cross-entropy on held-out text, the one loss all of them share."
    return _panel("cross-entropy", "Surprise at the true token", "nats per token", lines, figures.nats, caption)


def _agreement(training: Training) -> Panel | None:
    lines = [
        _curve("student", "var(--student)", training.student, lambda epoch: epoch.validation_agreement),
        _curve("twin", "var(--twin)", training.twin, lambda epoch: epoch.validation_agreement),
    ]
    caption = "Held-out positions where the likeliest token is the teacher’s likeliest."
    return _panel("agreement", "Agreement with the teacher", "share of positions", lines, figures.share, caption)


def _accuracy(training: Training) -> Panel | None:
    lines = [
        _curve("teacher", "var(--teacher)", training.teacher, lambda epoch: epoch.validation_accuracy),
        _curve("student", "var(--student)", training.student, lambda epoch: epoch.validation_accuracy),
        _curve("twin", "var(--twin)", training.twin, lambda epoch: epoch.validation_accuracy),
    ]
    caption = "Held-out positions where the likeliest token is the one that really came next."
    return _panel("accuracy", "Accuracy", "share of positions", lines, figures.share, caption)


def _curve(
    name: str, colour: str, epochs: Sequence[Epoch], value: Callable[[Epoch], float | None], *, dashed: bool = False
) -> Curve:
    points = [(epoch.epoch, found) for epoch in epochs if (found := value(epoch)) is not None]
    return Curve(name, colour, points, dashed)


def _panel(
    name: str, title: str, unit: str, lines: Sequence[Curve], write: Callable[[float], str], caption: str
) -> Panel | None:
    said = "; ".join(
        f"{line.name} from {write(line.points[0][1])} at epoch {line.points[0][0]:g}"
        f" to {write(line.points[-1][1])} at epoch {line.points[-1][0]:g}"
        for line in lines
        if line.points
    )
    drawing = curves(f"curve-{name}", lines, alternative=f"{title}, {unit}: {said}.", write=write)
    return None if drawing is None else Panel(title, unit, drawing, caption)
