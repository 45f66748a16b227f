"""The plain twins: how long the longer one trains, and what is said of a teacher that knows no more than they."""

import json

import pytest

from potstill.core.durable import write_json
from potstill.core.trace import Trace
from potstill.distill.settings import CrossEntropy, ForwardKl
from potstill.model.store import save_model
from potstill.train.loop import TrainingText
from potstill.train.settings import StudentSettings, twins_wanted
from potstill.train.twins import check_teacher_is_better, epochs_of_equal_time


@pytest.mark.parametrize(
    ("settings", "has_teacher", "wanted"),
    [
        ({}, True, "both"),
        ({}, False, None),
        ({"twin": True}, True, "both"),
        ({"twin": "steps"}, True, "steps"),
        ({"twin": False}, True, None),
        ({"losses": [CrossEntropy()]}, True, None),
        ({"losses": [ForwardKl(), CrossEntropy()]}, True, "both"),
    ],
)
def test_which_twins_are_trained(settings, has_teacher, wanted):
    assert twins_wanted(StudentSettings(**settings), has_teacher=has_teacher) == wanted


def labels_that_took(tmp_path, seconds):
    """A labels stage of which three quarters of the labels are the student's."""
    labels = tmp_path / "labels"
    facts = {"splits": {"train": {"tokens": 300}, "validation": {"tokens": 100}}}
    write_json(labels / "labels.json", facts)
    manifest = {"kind": "top_k", "fingerprint": "", "settings": {}, "inputs": {}, "files": {}, "versions": {}}
    write_json(
        labels / "manifest.json", {**manifest, "started": "", "ended": "", "seconds": seconds, "peak_memory_bytes": 0}
    )
    return labels


@pytest.mark.parametrize(
    ("student_s", "capture_s", "opening_s", "epochs"),
    [(10.0, 0.0, 0.0, 5), (11.0, 8.0, 3.0, 10), (11.0, 8.0, 3.1, 11), (2.0, 0.0, 0.0, 5)],
)
def test_the_longer_twin_trains_as_long_as_distilling_took(tmp_path, student_s, capture_s, opening_s, epochs):
    """At 2 s an epoch, and three quarters of the capture counted; rounded up, and never fewer than the student."""
    labels = labels_that_took(tmp_path, capture_s)
    student = [{"seconds": student_s / 5}] * 5
    twin = [{"seconds": 2.0}] * 5
    assert epochs_of_equal_time(student, twin, labels, tmp_path, Trace(), opening_s=opening_s) == epochs
    slower = [{"seconds": 100.0}] * 5
    assert epochs_of_equal_time(slower, twin, labels, tmp_path, Trace(), opening_s=0.0) == epochs, "measured once"


@pytest.mark.parametrize(("plain_nats", "warned"), [(0.1, True), (9.9, False)])
def test_a_teacher_no_better_than_the_twin_is_warned_of(tmp_path, make_model, held_out_text, plain_nats, warned):
    save_model(make_model(), None, tmp_path / "teacher")
    heard = []
    check_teacher_is_better(
        tmp_path / "teacher",
        TrainingText(held_out_text),
        [{"validation_cross_entropy_nats": 12.0}, {"validation_cross_entropy_nats": plain_nats}],
        tmp_path,
        Trace(listeners=[heard.append]),
        device="cpu",
        precision="float32",
    )
    assert any(event["kind"] == "warning" and "nothing to learn" in event["value"] for event in heard) == warned
    said = json.loads((tmp_path / "teacher_check.json").read_text())
    assert said["plain_nats"] == plain_nats
    assert said["teacher_nats"] == pytest.approx(4.2, abs=0.3)
