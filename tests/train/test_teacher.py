"""A teacher that grows from a shallower one: both parts of its history, and the same bytes after a stop in either."""

import json

import pytest
from safetensors.torch import load_file

from potstill.core import interrupt
from potstill.core.durable import write_json
from potstill.core.errors import Interrupted, RecipeError
from potstill.core.trace import Trace
from potstill.data.tokenizer import train_tokenizer
from potstill.train.settings import GrowFrom, Machine, TrainedTeacher
from potstill.train.teacher import train_teacher

MACHINE = Machine(seed=3, device="cpu", precision="float32")
SETTINGS = TrainedTeacher(
    parameters=60_000, epochs=2, batch_sentences=16, learning_rate=3e-3, grow_from=GrowFrom(blocks=1, epochs=2)
)


@pytest.fixture
def data(tmp_path, train_text, held_out_text):
    tokenizer = train_tokenizer(["some words to train a tokenizer on, so that there is one"], 300)
    tokenizer.save_pretrained(tmp_path / "data" / "tokenizer")
    train_text.save(tmp_path / "data", "train")
    held_out_text.save(tmp_path / "data", "validation")
    write_json(tmp_path / "data" / "data.json", {"vocabulary": 64, "beginning_id": 0, "end_id": 0})
    return tmp_path / "data"


def run_stage(data, out, *, settings=SETTINGS, trace=None):
    out.mkdir(exist_ok=True)
    train_teacher(settings, MACHINE, {"data": data}, out, trace or Trace())
    return json.loads((out / "history.json").read_text())


def test_a_grown_teacher_has_all_blocks_and_its_whole_history(data, tmp_path):
    history = run_stage(data, tmp_path / "teacher")
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4]
    assert [entry.get("blocks") for entry in history] == [1, 1, None, None]
    losses = [entry["validation_loss_nats"] for entry in history]
    assert losses == sorted(losses, reverse=True), "growing loses nothing"
    config = json.loads((tmp_path / "teacher" / "model" / "config.json").read_text())
    assert config["num_hidden_layers"] > 1


@pytest.mark.parametrize("num_steps", [3, 10, 14])
def test_stopped_before_or_after_growing_it_ends_in_the_same_bytes(data, tmp_path, stop_after, num_steps):
    """Ten steps are the shallow model's, ten the grown one's."""
    run_stage(data, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run_stage(data, tmp_path / "parts", trace=Trace(listeners=[stop_after(num_steps)]))
    interrupt._received.clear()
    run_stage(data, tmp_path / "parts")
    whole, parts = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all((whole[name] == parts[name]).all() for name in whole)


def test_a_start_as_deep_as_the_teacher_is_refused(data, tmp_path):
    settings = SETTINGS.model_copy(update={"grow_from": GrowFrom(blocks=50, epochs=1)})
    with pytest.raises(RecipeError, match="no fewer than"):
        run_stage(data, tmp_path / "teacher", settings=settings)
