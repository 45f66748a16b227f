"""Before labels are paid for: the teacher's loss on held-out text against what counting tells, and what is said."""

import json

import numpy as np
import pytest
import torch

from potstill.core.errors import InputError
from potstill.core.trace import Trace
from potstill.data.facts import vocabulary_of
from potstill.data.sequences import PackedSequences
from potstill.labels.settings import TopK
from potstill.model.store import load_model
from potstill.teacher.local import LocalTeacher
from potstill.teacher.preflight import check_before_capture
from potstill.teacher.settings import CaptureSettings


@pytest.fixture
def teacher(made):
    settings = CaptureSettings(labels=TopK(k=4), sentences=10, batch_sentences=16)
    return LocalTeacher(load_model(made["teacher"] / "model"), vocabulary_of(made["data"]), settings)


@pytest.fixture
def check(tmp_path, made, teacher):
    """Check the teacher on these texts, the fixture's own unless given; returns what was told and measured."""

    def run(*, train=None, held_out=None, trained_here=False):
        heard = []
        train = train or PackedSequences.load(made["data"], "train")
        held_out = held_out or PackedSequences.load(made["data"], "validation")
        trace = Trace(listeners=[heard.append])
        check_before_capture(teacher, train, held_out, tmp_path, trace, trained_here=trained_here)
        told = [event["value"] for event in heard if event["kind"] == "warning"]
        return told, json.loads((tmp_path / "preflight.json").read_text())

    return run


def test_the_teachers_loss_is_its_cross_entropy_on_the_held_out_text(made, check, teacher):
    """The obvious way: the whole model, row by row."""
    held_out = PackedSequences.load(made["data"], "validation")
    total, scored = 0.0, 0
    for row in range(len(held_out)):
        tokens_1T, scored_1T = held_out.rows([row])
        with torch.no_grad():
            logprobs_TV = teacher.model(torch.from_numpy(tokens_1T)).logits[0, :, : teacher.vocabulary].log_softmax(-1)
        for position in np.flatnonzero(scored_1T[0]):
            total -= float(logprobs_TV[position, tokens_1T[0, position + 1]])
            scored += 1
    _, measured = check()
    assert measured["positions"] == scored
    assert measured["teacher_nats"] == pytest.approx(total / scored, rel=1e-5)


def text_of(rows):
    tokens_NT = np.array(rows, dtype=np.uint16)
    num_rows, num_tokens = tokens_NT.shape
    return PackedSequences(tokens_NT, np.full(num_rows, num_tokens, dtype=np.int32), np.ones(num_rows, dtype=np.int32))


def test_a_useless_teacher_is_warned_of(check):
    """Random weights, on a text of few words: how often they occur says more."""
    words = text_of(np.random.default_rng(0).integers(1, 5, (50, 12)))
    for trained_here in (True, False):
        (warning,), measured = check(train=words, held_out=words, trained_here=trained_here)
        assert measured["teacher_nats"] > measured["unigram_nats"]
        assert "nothing to learn" in warning


@pytest.mark.parametrize("trained_here", [True, False])
def test_a_loaded_teacher_no_better_than_pairs_is_warned_of(check, trained_here, teacher):
    """Each token follows from the one before, and the student's rows hold one token far too often.

    So a teacher that knows nothing is still better than unigrams.
    """
    for weight in teacher.model.parameters():
        weight.data.zero_()
    vocabulary = teacher.vocabulary
    chains = (np.arange(vocabulary)[:, None] + np.arange(12)) % vocabulary
    held_out, train = text_of(chains), text_of([*chains, *np.full((20 * vocabulary, 12), 1)])
    told, measured = check(train=train, held_out=held_out, trained_here=trained_here)
    assert measured["teacher_nats"] == pytest.approx(np.log(vocabulary), rel=1e-5)
    assert measured["bigram_nats"] < measured["teacher_nats"] < measured["unigram_nats"]
    assert len(told) == (0 if trained_here else 1)
    assert all("will be better" in text for text in told)


def test_what_was_measured_is_kept(check, tmp_path):
    """A capture that goes on says what it said before, without asking the teacher again."""
    _, measured = check()
    kept = {**measured, "teacher_nats": 99.0}
    (tmp_path / "preflight.json").write_text(json.dumps(kept))
    (warning,), again = check()
    assert again == kept
    assert "99.000" in warning


def test_a_text_without_anything_to_score_is_refused(check):
    nothing = text_of(np.ones((3, 1)))
    with pytest.raises(InputError, match="scored"):
        check(held_out=nothing)
