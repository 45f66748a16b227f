"""A teacher that reads other tokens than the text has is refused before it is asked anything."""

import pytest

from potstill.core.errors import InputError
from potstill.core.trace import Trace
from potstill.data.tokenizer import train_tokenizer
from potstill.labels.settings import TopK
from potstill.teacher.capture import capture_labels
from potstill.teacher.settings import CaptureSettings

SETTINGS = CaptureSettings(labels=TopK(k=4), sentences=10)


def test_too_small_a_vocabulary(tmp_path, make_teacher):
    with pytest.raises(InputError, match="knows 100 tokens"):
        capture_labels(SETTINGS, make_teacher(vocabulary=100), tmp_path / "out", Trace())


def test_another_tokenizer_names_the_first_token_that_differs(tmp_path, make_teacher):
    train_tokenizer(["zebra zigzag zoo zoology " * 4] * 3, 300).save_pretrained(tmp_path / "other")
    inputs = make_teacher(tokenizer=tmp_path / "other", vocabulary=300)
    with pytest.raises(InputError, match=r"another tokenizer .* the first is '"):
        capture_labels(SETTINGS, inputs, tmp_path / "out", Trace())
    assert not (tmp_path / "out" / "train" / "store.json").exists()


def test_too_short_a_context(tmp_path, made, make_teacher):
    inputs = make_teacher(made["data"] / "tokenizer", vocabulary=300, max_position_embeddings=8)
    with pytest.raises(InputError, match="reads 8 tokens at once where a row has 12"):
        capture_labels(SETTINGS, inputs, tmp_path / "out", Trace())


def test_ids_that_stand_for_no_token_get_no_mass(tmp_path, made, make_teacher):
    """A vocabulary padded to a round number: said in the trace, and left out of the distribution."""
    events = []
    inputs = make_teacher(made["data"] / "tokenizer", vocabulary=512)
    capture_labels(SETTINGS, inputs, tmp_path / "out", Trace(listeners=[events.append]))
    notes = [event["value"] for event in events if event["kind"] == "note"]
    assert any("stand for no token" in note for note in notes)


def test_a_teacher_without_a_tokenizer_is_taken_on_trust_with_a_warning(tmp_path, make_teacher):
    events = []
    capture_labels(SETTINGS, make_teacher(vocabulary=300), tmp_path / "out", Trace(listeners=[events.append]))
    assert any("on trust" in event["value"] for event in events if event["kind"] == "warning")
