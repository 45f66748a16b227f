"""The loop learns, splits batches without changing the result, and goes on after a kill as if nothing had happened."""

import math

import numpy as np
import pytest
import torch

from potstill.core import interrupt
from potstill.core.errors import InputError, Interrupted, QualityGateError
from potstill.core.trace import Trace
from potstill.distill.objective import Objective
from potstill.distill.settings import CrossEntropy
from potstill.train import loop
from potstill.train.loop import Training, TrainingText, best_epoch, fit
from potstill.train.settings import TrainingSettings

SETTINGS = TrainingSettings(epochs=3, batch_sentences=16, learning_rate=3e-3)


def run_fit(model, train, held_out, directory, *, settings=SETTINGS, trace=None, checkpoint_seconds=1e9):
    training = Training(
        who="student",
        model=model,
        text=TrainingText(train),
        validation=TrainingText(held_out),
        objective=Objective([CrossEntropy()]),
        settings=settings,
        seed=7,
        precision="float32",
    )
    return fit(training, directory, trace or Trace(), checkpoint_seconds=checkpoint_seconds)


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same_bytes(left, right):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def test_held_out_loss_falls_and_every_epoch_has_its_figures(make_model, train_text, held_out_text, tmp_path):
    history = run_fit(make_model(), train_text, held_out_text, tmp_path)
    losses = [entry["validation_loss_nats"] for entry in history]
    assert [entry["epoch"] for entry in history] == [1, 2, 3]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] < math.log(64) + 0.2
    for entry in history:
        assert entry["loss"] == "cross_entropy"
        assert entry["observation"]
        assert entry["tokens_per_s"] > 0
        assert entry["validation_perplexity"] == pytest.approx(math.exp(entry["validation_cross_entropy_nats"]))


def test_same_seed_gives_the_same_bytes(make_model, train_text, held_out_text, tmp_path):
    models = [make_model(), make_model()]
    for number, model in enumerate(models):
        run_fit(model, train_text, held_out_text, tmp_path / str(number))
    assert_same_bytes(weights_of(models[0]), weights_of(models[1]))


@pytest.mark.parametrize("num_steps", [1, 4, 5, 6, 11, 14])
def test_stopped_anywhere_and_resumed_it_ends_in_the_same_bytes(
    make_model, train_text, held_out_text, tmp_path, num_steps, stop_after
):
    """Stops in the first step, before, at and after an epoch's end, and near the end; 5 steps make an epoch."""
    undisturbed = make_model()
    expected = run_fit(undisturbed, train_text, held_out_text, tmp_path / "whole")
    stopped = make_model()
    with pytest.raises(Interrupted):
        run_fit(stopped, train_text, held_out_text, tmp_path / "parts", trace=Trace(listeners=[stop_after(num_steps)]))
    interrupt._received.clear()
    resumed = make_model(seed=99)  # whatever it starts from, the checkpoint decides
    history = run_fit(resumed, train_text, held_out_text, tmp_path / "parts")
    assert_same_bytes(weights_of(undisturbed), weights_of(resumed))
    for left, right in zip(expected, history, strict=True):
        timed = {"tokens_per_s", "seconds"}
        assert {key: left[key] for key in left.keys() - timed} == {key: right[key] for key in right.keys() - timed}


def test_killed_after_the_last_step_it_has_nothing_left_to_do(make_model, train_text, held_out_text, tmp_path):
    first, again = make_model(), make_model(seed=5)
    run_fit(first, train_text, held_out_text, tmp_path)
    run_fit(again, train_text, held_out_text, tmp_path)
    assert_same_bytes(weights_of(first), weights_of(again))


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_micro_batches_change_nothing_but_the_last_bits(make_model, train_text, held_out_text, tmp_path, micro):
    whole, split = make_model(), make_model()
    run_fit(whole, train_text, held_out_text, tmp_path / "whole")
    settings = SETTINGS.model_copy(update={"micro_batch_sentences": micro})
    run_fit(split, train_text, held_out_text, tmp_path / "split", settings=settings)
    for left, right in zip(whole.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)


def test_padding_is_never_learnt_from(make_model, train_text, held_out_text, tmp_path):
    """What stands in the padding changes no bit of the result."""
    scribbled = train_text.tokens_NT.copy()
    padding_NT = np.arange(scribbled.shape[1]) >= train_text.lengths_N[:, None]
    scribbled[padding_NT] = 17
    other = type(train_text)(scribbled, train_text.lengths_N, train_text.prompts_N)
    models = [make_model(), make_model()]
    for number, (model, text) in enumerate(zip(models, (train_text, other), strict=True)):
        run_fit(model, text, held_out_text, tmp_path / str(number))
    assert_same_bytes(weights_of(models[0]), weights_of(models[1]))


def test_the_best_epoch_is_kept_not_the_last(make_model, train_text, held_out_text, tmp_path):
    """Over-fit on 4 rows: the weights left in the model score as the best epoch did."""
    settings = SETTINGS.model_copy(update={"epochs": 60, "learning_rate": 3e-2, "weight_decay": 0.0})
    model = make_model()
    history = run_fit(model, train_text.first(4), held_out_text, tmp_path, settings=settings)
    best = best_epoch(history)
    assert best < 60
    measured = loop.validate(model, held_out_text, None, precision="float32")
    assert measured["validation_cross_entropy_nats"] == pytest.approx(history[best - 1]["validation_loss_nats"])


def test_patience_ends_a_run_that_gets_worse(make_model, train_text, held_out_text, tmp_path):
    settings = SETTINGS.model_copy(update={"epochs": 60, "learning_rate": 3e-2, "weight_decay": 0.0, "patience": 2})
    history = run_fit(make_model(), train_text.first(4), held_out_text, tmp_path, settings=settings)
    assert len(history) == best_epoch(history) + 2


def test_a_loss_that_is_no_number_stops_the_run(make_model, train_text, held_out_text, tmp_path):
    model = make_model()
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(QualityGateError, match="loss is nan at step 0"):
        run_fit(model, train_text, held_out_text, tmp_path)
    assert not (tmp_path / "checkpoint.json").exists()


def test_nothing_scored_in_the_held_out_text_is_refused(make_model, train_text, held_out_text, tmp_path):
    prompts_N = held_out_text.lengths_N.copy()
    unscored = type(held_out_text)(held_out_text.tokens_NT, held_out_text.lengths_N, prompts_N)
    with pytest.raises(InputError, match="no position"):
        run_fit(make_model(), train_text, unscored, tmp_path)


def test_a_damaged_checkpoint_is_named(make_model, train_text, held_out_text, tmp_path, stop_after):
    with pytest.raises(Interrupted):
        run_fit(make_model(), train_text, held_out_text, tmp_path, trace=Trace(listeners=[stop_after(3)]))
    interrupt._received.clear()
    state = next(tmp_path.glob("state-*.safetensors"))
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(content)
    with pytest.raises(InputError, match="is damaged"):
        run_fit(make_model(), train_text, held_out_text, tmp_path)
