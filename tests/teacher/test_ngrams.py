"""Counting as a yardstick: its probabilities are probabilities, and equal the obvious way of computing them."""

from collections import Counter

import numpy as np
import pytest

from potstill.data.sequences import PackedSequences
from potstill.teacher.ngrams import counting_nats, pairs_of

VOCABULARY = 7


def pairs(seed, num_pairs, vocabulary=VOCABULARY):
    generator = np.random.default_rng(seed)
    return generator.integers(0, vocabulary, (num_pairs, 2)) ** 2 // vocabulary


def obvious(counted, vocabulary):
    """P(token | before) and P(token), token by token, from the formula of absolute discounting."""

    def discounted(counts, lower):
        times = Counter(counts.values())
        discount = times[1] / (times[1] + 2 * times[2]) if times[1] else 0.5

        def probability(context, token):
            own = {key: count for key, count in counts.items() if key[0] == context}
            total = sum(own.values())
            if not total:
                return lower(token)
            return (max(counts[context, token] - discount, 0) + discount * len(own) * lower(token)) / total

        return probability

    tokens = discounted(Counter((0, token) for _, token in counted.tolist()), lambda _: 1 / vocabulary)
    pairs_ = discounted(Counter(map(tuple, counted.tolist())), lambda token: tokens(0, token))
    return (lambda _, token: tokens(0, token)), pairs_


@pytest.mark.parametrize("num_counted", [1, 2, 5, 40, 2000])
def test_counting_equals_the_obvious_way_and_sums_to_one(num_counted):
    counted, predicted = pairs(0, num_counted), pairs(1, 30)
    for nats, probability in zip(
        counting_nats(counted, predicted, vocabulary=VOCABULARY), obvious(counted, VOCABULARY), strict=True
    ):
        expected = -np.mean([np.log(probability(*pair)) for pair in predicted.tolist()])
        assert nats == pytest.approx(expected, rel=1e-12)
        for context in range(VOCABULARY):
            assert sum(probability(context, token) for token in range(VOCABULARY)) == pytest.approx(1)


def test_pairs_tell_more_of_a_text_in_which_pairs_do():
    """Each token is followed by the next one: a unigram sees a flat text, a bigram a certain one."""
    chain = np.arange(5000) % VOCABULARY
    chained = np.stack([chain[:-1], chain[1:]], axis=1)
    unigram_nats, bigram_nats = counting_nats(chained, chained, vocabulary=VOCABULARY)
    assert unigram_nats == pytest.approx(np.log(VOCABULARY), abs=1e-3)
    assert bigram_nats < 0.01


def test_large_ids_are_told_apart():
    """A vocabulary of 150,000: keys beyond 32 bits."""
    counted = np.array([[149_999, 149_999], [149_999, 0], [0, 149_999]] * 5)
    _, seen_nats = counting_nats(counted, counted, vocabulary=150_000)
    _, other_nats = counting_nats(counted, np.array([[149_998, 1]]), vocabulary=150_000)
    assert seen_nats < 1.0
    assert other_nats > 10.0


def test_pairs_are_those_of_scored_positions():
    """Padding and what a prompt holds are never predicted; the prompt's last token is what stands before."""
    sequences = PackedSequences(
        np.array([[1, 2, 3, 0], [4, 5, 6, 1], [2, 0, 0, 0]], dtype=np.uint16),
        np.array([3, 4, 1], dtype=np.int32),
        np.array([1, 3, 1], dtype=np.int32),
    )
    assert pairs_of(sequences).tolist() == [[1, 2], [2, 3], [6, 1]]
    assert len(pairs_of(sequences)) == sequences.num_scored
