"""Intervals: they cover the truth as often as they say, and engines are judged on the same resamples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.evaluate.bootstrap import paired_difference, perplexity_interval_95, resampled_mean, twin_verdict
from potstill.evaluate.likelihood import Scores


def scores_of(nats_N, scored_N):
    nats_N, scored_N = np.asarray(nats_N, np.float64), np.asarray(scored_N, np.int64)
    return Scores(nats_N=nats_N, scored_N=scored_N, correct_N=np.zeros_like(scored_N))


def simulated(generator, num, mean=3.0, between=0.5, within=1.0):
    """Sequences of 5 to 40 positions that share a level, so that positions of one sequence hang together."""
    scored_N = generator.integers(5, 41, num)
    level_N = mean + generator.normal(0, between, num)
    return scores_of(scored_N * level_N + generator.normal(0, within, num) * np.sqrt(scored_N), scored_N)


def test_the_interval_covers_the_true_perplexity_about_95_times_in_100():
    """300 simulated texts of 80 sequences: the coverage lies within three standard errors of 0.95, or a bit below."""
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        low, high = perplexity_interval_95(simulated(generator, 80), seed=trial, num_resamples=400)
        hits += low <= np.exp(3.0) <= high
    assert 0.90 <= hits / 300 <= 0.985


def test_intervals_over_single_positions_would_be_too_narrow():
    """The cluster interval is more than twice as wide as one that takes the positions for independent."""
    scores = simulated(np.random.default_rng(1), 200)
    low, high = perplexity_interval_95(scores, seed=0, num_resamples=500)
    naive_half_width_nats = 1.96 * np.sqrt(1.0 / scores.num_scored + 0.5**2 / scores.num_scored)
    assert np.log(high / low) > 2 * 2 * naive_half_width_nats


def test_resamples_equal_the_slow_loop():
    """One multinomial draw per resample, weights applied sequence by sequence."""
    scores = simulated(np.random.default_rng(2), 17)
    fast = resampled_mean(scores.nats_N, scores.scored_N, seed=5, num_resamples=50)
    generator = np.random.default_rng([5, 17])
    for mean in fast:
        times = generator.multinomial(17, np.full(17, 1 / 17))
        nats = sum(float(n) * int(k) for n, k in zip(scores.nats_N, times, strict=True))
        assert mean == pytest.approx(nats / sum(int(s) * int(k) for s, k in zip(scores.scored_N, times, strict=True)))


def test_blocks_of_resamples_give_the_same_draws(monkeypatch):
    scores = simulated(np.random.default_rng(3), 30)
    whole = resampled_mean(scores.nats_N, scores.scored_N, seed=0, num_resamples=101)
    monkeypatch.setattr("potstill.evaluate.bootstrap._BLOCK_DRAWS", 30 * 7)
    np.testing.assert_allclose(
        resampled_mean(scores.nats_N, scores.scored_N, seed=0, num_resamples=101), whole, rtol=1e-14
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), num=st.integers(1, 40), shift=st.floats(-1, 1))
def test_pairing_removes_what_both_engines_share(seed, num, shift):
    """A constant shift per position has an interval of no width, however noisy the text is."""
    b = simulated(np.random.default_rng(seed), num)
    a = scores_of(b.nats_N + shift * b.scored_N, b.scored_N)
    difference, low, high = paired_difference(a, b, seed=seed, num_resamples=200)
    assert (difference, low, high) == pytest.approx((shift, shift, shift), abs=1e-9)


def test_sequences_without_scored_positions_carry_nothing():
    with_empty = scores_of([4.0, 0.0, 9.0], [2, 0, 3])
    without = scores_of([4.0, 9.0], [2, 3])
    assert perplexity_interval_95(with_empty, seed=0, num_resamples=300) == perplexity_interval_95(
        without, seed=0, num_resamples=300
    )


def test_a_single_sequence_has_an_interval_of_no_width():
    low, high = perplexity_interval_95(scores_of([6.0], [2]), seed=0, num_resamples=100)
    assert low == high == pytest.approx(np.exp(3.0))


def test_scores_of_other_positions_cannot_be_paired():
    with pytest.raises(ValueError, match="same positions"):
        paired_difference(scores_of([1.0], [1]), scores_of([1.0], [2]), seed=0, num_resamples=100)


@pytest.mark.parametrize(
    ("shift", "word"), [(-0.3, "Distilling helped"), (0.3, "Distilling did harm"), (0.0, "can't be told")]
)
def test_the_twin_verdict_follows_the_interval(shift, word):
    generator = np.random.default_rng(4)
    twin = simulated(generator, 100)
    noise_N = generator.normal(0, 0.2, 100)
    noise_N -= (noise_N * twin.scored_N).sum() / twin.num_scored
    student = scores_of(twin.nats_N + twin.scored_N * (shift + noise_N), twin.scored_N)
    verdict = twin_verdict(student, twin, seed=0, num_resamples=500)
    low, high = verdict["interval_95"]
    assert low <= verdict["difference_nats"] <= high
    assert word in verdict["verdict"]
