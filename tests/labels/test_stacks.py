"""Stacks give back what was pushed, bit for bit, in as many bits as it was improbable."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.core.errors import InputError
from potstill.labels.items import Expected, Items
from potstill.labels.multisets import pop_draws, push_draws
from potstill.labels.stacks import PRECISION, Stacks


def random_expected(generator, rows, vocabulary, spread):
    """Cumulative frequencies from 0 to 2^28, each at least 1, each token alone."""
    weights = np.exp(generator.normal(size=(rows, vocabulary)) * spread)
    shares = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)
    cdf = np.zeros((rows, vocabulary + 1), dtype=np.int64)
    cdf[:, 1:] = np.floor(shares * (2**PRECISION - vocabulary)) + np.arange(1, vocabulary + 1)
    cdf[:, -1] = 2**PRECISION
    return Expected(cdf.astype(np.int32), Items.alone(vocabulary))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    stacks=st.integers(1, 5),
    precision=st.sampled_from([1, 8, 16, 28, 32]),
    steps=st.integers(0, 60),
)
def test_what_is_pushed_is_popped_in_reverse(seed, stacks, precision, steps):
    """Any frequencies, certainty among them, on any first few of the stacks; through bytes in the middle."""
    generator = np.random.default_rng(seed)
    seeds = generator.integers(0, 2**63, stacks).astype(np.uint64)
    pile, pushed = Stacks.seeded(seeds), []
    for _ in range(steps):
        n = int(generator.integers(1, stacks + 1))
        ends = generator.integers(0, 2**precision + 1, (n, 2))
        ends.sort(axis=1)
        ends[ends[:, 0] == ends[:, 1]] = (0, 2**precision)
        start, frequency = ends[:, 0].astype(np.uint64), (ends[:, 1] - ends[:, 0]).astype(np.uint64)
        pile.push(start, frequency, precision)
        pushed.append((n, start, frequency))
    pile = Stacks.from_bytes(pile.to_bytes())
    for n, start, frequency in reversed(pushed):
        top = pile.peek(n, precision)
        assert ((top >= start) & (top < start + frequency)).all()
        pile.pop(start, frequency, precision)
    assert pile.hold_only(seeds).all()


def test_a_pop_before_any_push_is_undone_by_the_push():
    """The decoder's push gives back what the encoder popped: choices cost nothing."""
    seeds = np.array([7, 2**62 - 1], dtype=np.uint64)
    pile = Stacks.seeded(seeds)
    starts, frequencies = (np.array(numbers, dtype=np.uint64) for numbers in ([0, 0], [256, 256]))
    for _ in range(2):
        top = pile.peek(2, 8)
        assert ((top >= starts) & (top < starts + frequencies)).all()
        pile.pop(starts, frequencies, 8)
    pile.push(starts, frequencies, 8)
    pile.push(starts, frequencies, 8)
    assert pile.hold_only(seeds).all()


@pytest.mark.parametrize("length", [0, 4, 7, 9, 13])
def test_bytes_that_no_stack_has_are_refused(length):
    with pytest.raises(InputError, match="sequence 1"):
        Stacks.from_bytes([bytes(8), bytes(length)])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    stacks=st.integers(1, 4),
    num_draws=st.sampled_from([1, 2, 3, 16, 50, 255]),
    vocabulary=st.integers(2, 40),
    spread=st.floats(0, 6),
)
def test_draws_come_back_sorted(seed, stacks, num_draws, vocabulary, spread):
    """Any draws, whether the prior expects them or not; several positions on one stack."""
    generator = np.random.default_rng(seed)
    expected = [random_expected(generator, stacks, vocabulary, spread) for _ in range(3)]
    drawn = [np.sort(generator.integers(0, vocabulary, (stacks, num_draws)), axis=1) for _ in range(3)]
    seeds = generator.integers(0, 2**63, stacks).astype(np.uint64)
    pile = Stacks.seeded(seeds)
    for draws, each in zip(reversed(drawn), reversed(expected), strict=True):
        push_draws(pile, draws, each)
    pile = Stacks.from_bytes(pile.to_bytes())
    for draws, each in zip(drawn, expected, strict=True):
        assert np.array_equal(pop_draws(pile, num_draws, each), draws)
    assert pile.hold_only(seeds).all()


def test_draws_cost_what_their_multiset_is_improbable():
    """50 draws at 40 positions: -log2 of the multinomial probability and 16 bytes, to one percent."""
    generator = np.random.default_rng(0)
    num_draws, vocabulary, positions = 50, 500, 40
    pile = Stacks.seeded(generator.integers(0, 2**63, 3).astype(np.uint64))
    bits = np.zeros(3)
    logs = np.concatenate([[0.0], np.cumsum(np.log2(np.arange(1, num_draws + 1)))])
    for _ in range(positions):
        expected = random_expected(generator, 3, vocabulary, 2.0)
        shares = np.diff(expected.cdf_nI1.astype(np.int64), axis=1) / 2**PRECISION
        counts = np.stack([generator.multinomial(num_draws, share) for share in shares])
        bits -= logs[num_draws] - logs[counts].sum(axis=1) + (counts * np.log2(shares)).sum(axis=1)
        push_draws(pile, np.stack([np.repeat(np.arange(vocabulary), count) for count in counts]), expected)
    spent = np.array([len(encoded) * 8 for encoded in pile.to_bytes()])
    assert (spent <= bits * 1.01 + 128).all()
    assert (spent >= bits).all()
