"""The plain twins: the same student from the same initial weights, on the same rows, without a teacher.

One trains for as many steps as the student. Distilling also costs asking the teacher and reading its labels, time in
which plain training would go on; so the other trains for as long as all of that took, in whole epochs, rounded up.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.core.artefact import read_manifest
from potstill.core.durable import read_json, write_json
from potstill.core.trace import Trace
from potstill.core.world import current
from potstill.distill.observe import GAP_WIDE
from potstill.labels.store import LabelStore
from potstill.model.store import load_model
from potstill.train.loop import TrainingText
from potstill.train.settings import Precision
from potstill.train.validation import validate

__all__ = ["EQUAL_TIME", "check_teacher_is_better", "epochs_of_equal_time"]

EQUAL_TIME = "equal_time.json"
TEACHER_CHECK = "teacher_check.json"

History = Sequence[Mapping[str, Any]]


def epochs_of_equal_time(
    student: History, twin: History, labels: Path, out: Path, trace: Trace, *, opening_s: float
) -> int:
    """How many epochs the plain student can train in the time that distilling took: at least as many as the student.

    Counted are the student's steps, with the reading of labels in them, opening the store, and capturing the labels
    of the student's rows, all of it, for one store may serve one student. It is a measurement: another run may come to
    another number. Once made it is kept in ``equal_time.json``, so that a resumed run goes on with it.
    """
    file = out / EQUAL_TIME
    if not file.exists():
        facts = {
            "student_s": sum(entry["seconds"] for entry in student),
            "opening_s": opening_s,
            "capture_s": _capture_s(labels, trace),
            "plain_s_per_epoch": sum(entry["seconds"] for entry in twin) / len(twin),
        }
        seconds = facts["student_s"] + facts["opening_s"] + facts["capture_s"]
        epochs = max(math.ceil(seconds / max(facts["plain_s_per_epoch"], 1e-9)), len(student))
        (agreed,) = current().largest([epochs])
        if current().leads:
            write_json(file, {**facts, "epochs": int(agreed)})
        current().gather()
    epochs = int(read_json(file)["epochs"])
    trace.metric("epochs_of_equal_time", epochs, "epochs", model="twin-long")
    return epochs


def check_teacher_is_better(
    teacher: Path,
    validation: TrainingText,
    twin: History,
    out: Path,
    trace: Trace,
    *,
    device: str,
    precision: Precision,
    labels: LabelStore | None = None,
) -> None:
    """Before the student is trained, warn if its teacher predicts held-out text no better than the plain twin does.

    ``labels`` are those of the student's rows: draws also tell the teacher's loss there. Where that is far lower, the
    teacher knows these rows by heart, and its labels of them come near the true tokens; that is noted.

    Writes: teacher_check.json: ``teacher_nats``, ``plain_nats`` a held-out token, ``teacher_training_nats`` a token of
    the student's rows, null where the labels don't tell.
    """
    model = load_model(teacher).to(device)  # type: ignore[arg-type] # transformers wraps torch's `to`
    measured = validate(model, validation.sequences, None, precision=precision)
    teacher_nats = measured["validation_cross_entropy_nats"]
    plain_nats = min(entry["validation_cross_entropy_nats"] for entry in twin)
    training_nats = _training_nats(labels)
    facts = {"teacher_nats": teacher_nats, "plain_nats": plain_nats, "teacher_training_nats": training_nats}
    if current().leads:
        write_json(out / TEACHER_CHECK, facts)
    if training_nats is not None:
        gap = (teacher_nats - training_nats) / max(training_nats, 1e-9)
        means = (
            ": it begins to know them by heart, and its labels to tell no more than they do" if gap > GAP_WIDE else ""
        )
        losses = f"{training_nats:.3f} nats a token, on others {teacher_nats:.3f}"
        trace.note("teacher check", f"on the student's rows the teacher has {losses}{means}")
    said = f"on held-out text the teacher has {teacher_nats:.3f} nats a token, its student without it {plain_nats:.3f}"
    if teacher_nats < plain_nats:
        trace.note("teacher check", said)
    else:
        trace.warning(f"{said}: there is nothing to learn from this teacher; give it more text, or another one")


def _training_nats(labels: LabelStore | None) -> float | None:
    """The teacher's cross-entropy on the rows of a label store, None if it doesn't tell."""
    logprobs_P = None if labels is None else labels.true_logprobs
    return None if logprobs_P is None or not len(logprobs_P) else -float(logprobs_P.mean(dtype="float64"))


def _capture_s(labels: Path, trace: Trace) -> float:
    """What the labels of the student's rows took: the stage's time by their share of all labels captured."""
    manifest = read_manifest(labels)
    if manifest is None:
        trace.note("twin", "nobody measured how long capturing the labels took; it isn't counted")
        return 0.0
    splits = read_json(labels / "labels.json")["splits"]
    share = splits["train"]["tokens"] / max(sum(split["tokens"] for split in splits.values()), 1)
    return float(manifest.seconds * share)
