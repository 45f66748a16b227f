"""The observation of an epoch: each branch at its limit, from the figures alone."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.distill.observe import observe


def row(epoch, validation, train, **more):
    return {"epoch": epoch, "train_loss_nats": train, "validation_loss_nats": validation, **more}


def two(before, after, *, train=(2.0, 1.9), **more):
    return observe([row(1, before, train[0], **more), row(2, after, train[1], **more)], 2)


def test_a_distilled_epoch_names_kl_and_agreement():
    history = [
        row(1, 2.31, 2.5, loss="forward_kl", validation_agreement=0.30, validation_accuracy=0.2),
        row(2, 1.52, 1.50, loss="forward_kl", validation_agreement=0.41, validation_accuracy=0.2),
    ]
    assert observe(history, 2) == (
        "comes quickly closer to the teacher: KL to the teacher 2.31 → 1.52 nats (\N{MINUS SIGN}34 %), "
        "agreement 0.30 → 0.41; train and validation are close"
    )


def test_a_plain_epoch_names_cross_entropy_and_accuracy():
    history = [row(1, 5.0, 6.0, loss="cross_entropy", validation_accuracy=0.211)]
    assert observe(history, 1) == (
        "the first pass over the text: cross-entropy 5.00 nats, accuracy 0.21; "
        "validation is below the epoch's mean train loss (6.00), as while learning"
    )


@pytest.mark.parametrize(
    ("after", "start"),
    [
        (0.5, "learns quickly"),
        (0.9, "learns quickly"),
        (0.9001, "keeps improving"),
        (0.98, "keeps improving"),
        (0.9801, "improves slowly"),
        (0.995, "improves slowly"),
        (0.9951, "has nearly converged"),
        (1.0, "has nearly converged"),
        (1.005, "has nearly converged"),
        (1.0051, "over-fits"),
    ],
)
def test_the_fall_of_the_validation_loss_chooses_the_verb(after, start):
    assert two(1.0, after).startswith(start)


def test_a_small_change_is_told_with_a_decimal():
    assert "(\N{MINUS SIGN}0.4 %)" in two(1.0, 0.996)
    assert "(±0 %)" in two(1.0, 1.0)
    assert "(\N{MINUS SIGN}1 %)" in two(1.0, 0.99)


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (1.06, "validation is below the epoch's mean train loss (1.06)"),
        (1.05, "train and validation are close"),
        (0.96, "train and validation are close"),
        (0.95, "a little above train (0.95)"),
        (0.80, "a little above train (0.80)"),
        (0.79, "far above train (0.79): it begins to learn the text by heart"),
    ],
)
def test_the_gap_is_judged_against_train(train, words):
    assert words in two(1.1, 1.0, train=(2.0, train))


def test_over_fitting_names_the_best_epoch():
    history = [row(1, 5.0, 5.0), row(2, 4.0, 4.0), row(3, 4.1, 3.5), row(4, 4.2, 3.0)]
    assert "over-fits" in observe(history, 4)
    assert "best was epoch 2" in observe(history, 4)


def test_both_losses_rising_is_a_setback_and_not_over_fitting():
    assert two(1.0, 1.2, train=(1.0, 1.1)).startswith("a setback")


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_loss_that_is_no_number_is_said_plainly(value):
    assert "diverged" in two(1.0, value)
    assert two(value, 1.0).startswith("back to finite numbers")


def test_later_epochs_are_not_looked_at():
    history = [row(1, 3.0, 3.0), row(2, 2.0, 2.0), row(3, 9.0, 1.0)]
    assert observe(history, 2) == observe(history[:2], 2)


def test_an_epoch_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no epoch 3"):
        observe([row(1, 3.0, 3.0)], 3)


def test_a_loss_of_zero_is_no_division_by_it():
    assert two(0.0, 0.0, train=(0.0, 0.0)).startswith("has nearly converged")
    assert two(0.0, 0.1, train=(1.0, 0.5)).startswith("over-fits")


losses = st.floats(0, 50) | st.just(math.nan)


@given(st.lists(st.tuples(losses, losses), min_size=1, max_size=6))
def test_any_history_gives_one_line(values):
    history = [row(number, *pair) for number, pair in enumerate(values, start=1)]
    sentence = observe(history, len(history))
    assert sentence
    assert "\n" not in sentence
