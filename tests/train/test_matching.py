"""A training that matches hidden states too: it learns them, resumes to the same bytes, and saves a plain model."""

import pytest
import torch
from safetensors.torch import load_file

from potstill.core import interrupt
from potstill.core.durable import write_json
from potstill.core.errors import Interrupted
from potstill.core.trace import Trace
from potstill.data.tokenizer import train_tokenizer
from potstill.distill.hidden import HiddenMatching
from potstill.distill.objective import Objective
from potstill.distill.settings import CrossEntropy, HiddenStates
from potstill.model.store import save_model
from potstill.train.loop import Training, TrainingText, fit
from potstill.train.settings import Machine, StudentSettings, TrainingSettings
from potstill.train.student import train_student

LOSSES = (CrossEntropy(), HiddenStates(weight=2.0))


@pytest.fixture
def run(make_model, train_text, held_out_text):
    """Makes a model and its matching with seeds, and trains them in a directory."""

    def trained(directory, *, seed=0, trace=None):
        model = make_model(seed)
        matching = HiddenMatching(LOSSES[1], model, make_model(50), seed=seed)
        training = Training(
            who="student",
            model=model,
            text=TrainingText(train_text),
            validation=TrainingText(held_out_text),
            objective=Objective(LOSSES),
            settings=TrainingSettings(epochs=3, batch_sentences=16, learning_rate=3e-3),
            seed=7,
            precision="float32",
            matching=matching,
        )
        history = fit(training, directory, trace or Trace(), checkpoint_seconds=1e9)
        return history, {name: value.detach().clone() for name, value in training.learner.named_parameters()}

    return trained


def test_the_distance_falls_and_the_history_names_both_losses(run, tmp_path):
    """The training loss holds both, the validation loss is the cross-entropy alone."""
    history, _ = run(tmp_path)
    assert [entry["loss"] for entry in history] == ["cross_entropy + hidden_states"] * 3
    assert {entry["validation_loss"] for entry in history} == {"cross_entropy"}
    assert history[0]["train_loss_nats"] > history[-1]["train_loss_nats"]
    assert history[0]["train_loss_nats"] > history[0]["validation_cross_entropy_nats"] + 0.1


@pytest.mark.parametrize("num_steps", [1, 5, 11])
def test_stopped_and_resumed_it_ends_in_the_same_bytes(run, tmp_path, num_steps, stop_after):
    """Projections and their optimiser state included, whatever they start from when they go on."""
    _, whole = run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", trace=Trace(listeners=[stop_after(num_steps)]))
    interrupt._received.clear()
    _, resumed = run(tmp_path / "parts", seed=9)
    assert any("matching.projections" in name for name in whole)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_saved_student_holds_no_projection(make_model, train_text, held_out_text, tmp_path):
    data = tmp_path / "data"
    train_tokenizer(["some words to train a tokenizer on, so that there is one"], 300).save_pretrained(
        data / "tokenizer"
    )
    train_text.save(data, "train")
    held_out_text.save(data, "validation")
    write_json(data / "data.json", {"vocabulary": 64, "beginning_id": 0, "end_id": 0})
    save_model(make_model(50), data / "tokenizer", tmp_path / "teacher" / "model")
    settings = StudentSettings(epochs=1, parameters=40_000, losses=LOSSES)
    (tmp_path / "out").mkdir()
    inputs = {"data": data, "teacher": tmp_path / "teacher"}
    train_student(settings, Machine(device="cpu", precision="float32"), 70, inputs, tmp_path / "out", Trace())
    saved = load_file(tmp_path / "out" / "model" / "model.safetensors")
    twin = load_file(tmp_path / "out" / "twin" / "model" / "model.safetensors")
    assert saved.keys() == twin.keys()
    assert not [name for name in saved if "projection" in name or "matching" in name]
    assert any(not torch.equal(saved[name], twin[name]) for name in saved)
