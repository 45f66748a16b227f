"""What counting alone knows of a text: how well its tokens and pairs of tokens predict another text.

The yardstick for a teacher before its labels are paid for: nothing is trained, and a million tokens take half a second.

Shapes: n scored positions, V vocabulary; a pair is the token before and the token to predict.
Source: interpolated absolute discounting, Ney, Essen & Kneser 1994, with one discount an order.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from potstill.data.sequences import PackedSequences

__all__ = ["counting_nats", "pairs_of"]


def pairs_of(sequences: PackedSequences) -> NDArray[np.int64]:
    """The token of each scored position's context that stands last, and the token to predict: [n, 2]."""
    places_T = np.arange(1, sequences.tokens_per_sequence)
    scored_NT = (places_T >= sequences.prompts_N[:, None]) & (places_T < sequences.lengths_N[:, None])
    rows_n, places_n = np.nonzero(scored_NT)
    before_n, next_n = (sequences.tokens_NT[rows_n, places_n + step] for step in (0, 1))
    return np.stack([before_n, next_n], axis=1).astype(np.int64)


def counting_nats(
    counted_n2: NDArray[np.int64], predicted_n2: NDArray[np.int64], *, vocabulary: int
) -> tuple[float, float]:
    """The cross-entropy of one text's unigrams and bigrams on another, in nats a token.

    Every token has a probability above 0, and those of a context sum to one.

    Shapes: both texts hold at least one pair; ids below V, V below 2^31.
    """
    keys_n, wanted_n = (pairs_n2[:, 0] * vocabulary + pairs_n2[:, 1] for pairs_n2 in (counted_n2, predicted_n2))
    uniform_n = np.full(len(wanted_n), 1 / vocabulary)
    unigram_n = _discounted(counted_n2[:, 1], predicted_n2[:, 1], uniform_n, vocabulary)
    bigram_n = _discounted(keys_n, wanted_n, unigram_n, vocabulary)
    return float(-np.log(unigram_n).mean()), float(-np.log(bigram_n).mean())


@dataclass(frozen=True)
class _Counts:
    """How often each key occurs, keys in ascending order."""

    keys: NDArray[np.int64]
    counts: NDArray[np.int64]

    def at(self, keys_n: NDArray[np.int64]) -> NDArray[np.int64]:
        """The counts of some keys, 0 of those that never occur."""
        places_n = np.searchsorted(self.keys, keys_n).clip(max=len(self.keys) - 1)
        return np.where(self.keys[places_n] == keys_n, self.counts[places_n], 0)


def _discounted(
    keys_n: NDArray[np.int64], wanted_n: NDArray[np.int64], lower_n: NDArray[np.float64], vocabulary: int
) -> NDArray[np.float64]:
    """The probabilities of some keys, (context x V + token), from counted ones and the probabilities an order below.

    A constant is taken off every count; what that frees in a context goes to the order below.
    """
    ngrams = _Counts(*np.unique(keys_n, return_counts=True))
    contexts, first, followers = np.unique(ngrams.keys // vocabulary, return_index=True, return_counts=True)
    total_n = _Counts(contexts, np.add.reduceat(ngrams.counts, first)).at(wanted_n // vocabulary)
    once, twice = (int((ngrams.counts == times).sum()) for times in (1, 2))
    discount = once / (once + 2 * twice) if once else 0.5
    known_n = np.maximum(ngrams.at(wanted_n) - discount, 0.0)
    freed_n = discount * _Counts(contexts, followers).at(wanted_n // vocabulary)
    return np.where(total_n > 0, (known_n + freed_n * lower_n) / np.maximum(total_n, 1), lower_n)
