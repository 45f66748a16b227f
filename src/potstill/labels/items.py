"""Tokens that a decoder expects alike: those drawn most often each stand alone, all others share items.

A token's frequency is that of its item, which depends on the context, times its share of the item, which doesn't. So
what is computed at a position doesn't grow with the vocabulary: at 8,192 tokens, 1,024 items cost half a percent of
bytes; at 32,768 they save some, for there is less to learn.

Shapes: n positions, V vocabulary, I items, D width of the vectors that say which tokens are alike.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.core.errors import BugError
from potstill.labels.stacks import PRECISION, U64, Stacks, certain_unless

__all__ = ["MOST_ITEMS", "Expected", "Items", "group_tokens"]

_ALONE = 512
_SHARED = 512
MOST_ITEMS = _ALONE + _SHARED
"""More only where one would hold over 4,096 tokens."""
_MOST_TOGETHER = 1 << 12
_SHARE_BITS = 16
_ROUNDS = 12
_ROWS_AT_ONCE = 1 << 12


@dataclass(frozen=True)
class Items:
    """A partition of the vocabulary.

    Shapes: item_V uint16, each token's item; share_V uint16, its frequency within that out of 2^16, less one.
    """

    item_V: NDArray[np.uint16]
    share_V: NDArray[np.uint16]

    @classmethod
    def alone(cls, vocabulary: int) -> "Items":
        """Each token its own item."""
        return cls(np.arange(vocabulary, dtype=np.uint16), np.full(vocabulary, (1 << _SHARE_BITS) - 1, np.uint16))

    @property
    def vocabulary(self) -> int:
        """V."""
        return len(self.item_V)

    @cached_property
    def num_items(self) -> int:
        """I."""
        return int(self.item_V.max(initial=0)) + 1

    @property
    def grouped(self) -> bool:
        """Whether any tokens share an item."""
        return self.num_items < self.vocabulary

    @property
    def whole(self) -> bool:
        """Whether the shares of every item sum to one, without which nothing can be coded."""
        sums_I = np.bincount(self.item_V, weights=self.share_V.astype(np.float64) + 1, minlength=self.num_items)
        return bool((sums_I == 1 << _SHARE_BITS).all())

    def intervals(self, tokens_n: NDArray[np.int64]) -> tuple[U64, U64]:
        """Start and frequency of each token within its item, out of 2^16."""
        return self._starts[tokens_n].astype(np.uint64), self.share_V[tokens_n].astype(np.uint64) + np.uint64(1)

    def tokens_at(self, items_n: NDArray[np.int64], tops_n: U64) -> NDArray[np.int64]:
        """The token of each item in whose interval a number below 2^16 lies."""
        keys_n = (items_n << _SHARE_BITS) + tops_n.astype(np.int64)
        found_n: NDArray[np.int64] = self._sorted[np.searchsorted(self._begins, keys_n, side="right") - 1]
        return found_n

    @cached_property
    def _sorted(self) -> NDArray[np.int64]:
        """Tokens by item, then by id."""
        return np.argsort(self.item_V, kind="stable")

    @cached_property
    def _begins(self) -> NDArray[np.int64]:
        """Where each token of ``_sorted`` begins, all items one after the other, 2^16 each."""
        shares_V = self.share_V[self._sorted].astype(np.int64) + 1
        return np.cumsum(shares_V) - shares_V

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        start_V = np.empty(self.vocabulary, dtype=np.int64)
        start_V[self._sorted] = self._begins & ((1 << _SHARE_BITS) - 1)
        return start_V


@dataclass(frozen=True)
class Expected:
    """What is expected at n positions, one on each of n stacks.

    Shapes: cdf_nI1 int32, cumulative frequencies of the items from 0 to 2^28, each item's at least 1.
    """

    cdf_nI1: NDArray[np.int32]
    items: Items

    def push(self, stacks: Stacks, tokens_n: NDArray[np.int64], wanted_n: NDArray[np.bool_] | None = None) -> None:
        """Push a token on each stack, or on those where one is wanted."""
        if self.items.grouped:
            stacks.push(*certain_unless(wanted_n, *self.items.intervals(tokens_n), _SHARE_BITS), _SHARE_BITS)
        items_n = self.items.item_V[tokens_n].astype(np.int64)
        stacks.push(*certain_unless(wanted_n, *self._intervals(items_n), PRECISION))

    def pop(self, stacks: Stacks, wanted_n: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """The tokens that ``push`` pushed last; where none is wanted what comes out means nothing."""
        num_stacks = len(self.cdf_nI1)
        items_n = self._items_at(stacks.peek(num_stacks).astype(np.int32))
        stacks.pop(*certain_unless(wanted_n, *self._intervals(items_n), PRECISION))
        if not self.items.grouped:
            return items_n
        tokens_n = self.items.tokens_at(items_n, stacks.peek(num_stacks, _SHARE_BITS))
        stacks.pop(*certain_unless(wanted_n, *self.items.intervals(tokens_n), _SHARE_BITS), _SHARE_BITS)
        return tokens_n

    def _items_at(self, tops_n: NDArray[np.int32]) -> NDArray[np.int64]:
        """The item of each position in whose interval a number below 2^28 lies: by halving, all positions at once."""
        at_n, left = self._first_n.copy(), self.cdf_nI1.shape[1] - 1
        while left > 1:
            half = left // 2
            at_n += half * (self._flat.take(at_n + half) <= tops_n)
            left -= half
        return at_n - self._first_n

    def _intervals(self, items_n: NDArray[np.int64]) -> tuple[U64, U64]:
        at_n = self._first_n + items_n
        starts_n, ends_n = self._flat.take(at_n), self._flat.take(at_n + 1)
        return starts_n.astype(np.uint64), (ends_n - starts_n).astype(np.uint64)

    @cached_property
    def _flat(self) -> NDArray[np.int32]:
        return self.cdf_nI1.reshape(-1)

    @cached_property
    def _first_n(self) -> NDArray[np.int64]:
        num_stacks, width = self.cdf_nI1.shape
        first_n: NDArray[np.int64] = np.arange(num_stacks, dtype=np.int64) * width
        return first_n


def group_tokens(
    draws_PN: NDArray[np.int64], vocabulary: int, *, alike_VD: Tensor | None = None, seed: int = 0
) -> Items:
    """The tokens drawn most often alone; of the others, those whose vectors are alike together.

    The rows of a teacher's head are such vectors: tokens that follow the same contexts lie in the same direction.
    Without them the others lie together by their ids.

    Cost: 12 products of V x D with 512 x D.
    Raises: BugError: a vector for every token is not what was given.
    """
    if vocabulary <= MOST_ITEMS:
        return Items.alone(vocabulary)
    if alike_VD is not None and len(alike_VD) != vocabulary:
        raise BugError(f"{len(alike_VD)} vectors were given for {vocabulary} tokens")
    counts_V = np.bincount(draws_PN.ravel(), minlength=vocabulary).astype(np.float64) + 0.5
    often_first_V = np.argsort(-counts_V, kind="stable")
    rest = np.sort(often_first_V[_ALONE:])
    if alike_VD is None:
        cluster_of = np.arange(len(rest)) * _SHARED // len(rest)
    else:
        weights = torch.from_numpy(counts_V[rest]).float().sqrt()
        cluster_of = _clusters(alike_VD[torch.from_numpy(rest)], weights, seed)
    item_V = np.empty(vocabulary, dtype=np.uint16)
    item_V[often_first_V[:_ALONE]] = np.arange(_ALONE)
    number = _ALONE
    for cluster in range(_SHARED):
        members = rest[cluster_of == cluster]
        for first in range(0, len(members), _MOST_TOGETHER):
            item_V[members[first : first + _MOST_TOGETHER]] = number
            number += 1
    return Items(item_V, _shares(item_V, counts_V))


def _clusters(vectors_VD: Tensor, weights_V: Tensor, seed: int) -> NDArray[np.int64]:
    """k-means of the vectors' directions around their mean: each one's cluster, below 512."""
    generator = torch.Generator().manual_seed(seed)
    vectors_VD = torch.nn.functional.normalize(vectors_VD - vectors_VD.mean(0), dim=1)
    centres_CD = vectors_VD[torch.multinomial(weights_V, _SHARED, generator=generator)]
    nearest_V = torch.zeros(len(vectors_VD), dtype=torch.int64)
    for _ in range(_ROUNDS):
        half_C = 0.5 * centres_CD.square().sum(1)
        parts = torch.split(vectors_VD, _ROWS_AT_ONCE)
        nearest_V = torch.cat([(part @ centres_CD.T - half_C).argmax(1) for part in parts])
        sums_CD = torch.zeros_like(centres_CD).index_add_(0, nearest_V, vectors_VD * weights_V.unsqueeze(1))
        mass_C1 = torch.zeros(_SHARED).index_add_(0, nearest_V, weights_V).unsqueeze(1)
        centres_CD = torch.where(mass_C1 > 0, sums_CD / mass_C1.clamp_min(1e-12), centres_CD)
    return nearest_V.numpy()


def _shares(item_V: NDArray[np.uint16], counts_V: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Frequencies within each item, out of 2^16, less one; rounded to four bits, for they are to be kept."""
    items = item_V.astype(np.int64)
    sizes_I = np.bincount(items)
    mass_I = np.bincount(items, weights=counts_V)
    exact_V = counts_V / mass_I[items] * ((1 << _SHARE_BITS) - sizes_I[items])
    grain_V = 2.0 ** np.maximum(np.floor(np.log2(np.maximum(exact_V, 1))) - 3, 0)
    shares_V = (np.floor(exact_V / grain_V) * grain_V).astype(np.int64)
    missing_I = (1 << _SHARE_BITS) - np.bincount(items, weights=shares_V + 1.0).astype(np.int64)
    largest_first = np.lexsort((-counts_V, items))
    largest_I = largest_first[np.searchsorted(items[largest_first], np.arange(len(sizes_I)))]
    shares_V[largest_I] += missing_I
    rounded_V: NDArray[np.uint16] = shares_V.astype(np.uint16)
    return rounded_V
