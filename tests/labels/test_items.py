"""Tokens that share an item are a partition with exact shares, and are coded in as many bits as they are improbable."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.core.errors import BugError
from potstill.labels.items import MOST_ITEMS, Expected, Items, group_tokens
from potstill.labels.multisets import pop_draws, push_draws
from potstill.labels.prior_fit import fit_prior
from potstill.labels.stacks import PRECISION, Stacks


def zipf_draws(vocabulary, positions=4000, draws=8, seed=0):
    """Draws of tokens of very unlike frequency, their ids in no order."""
    generator = np.random.default_rng(seed)
    shares_V = 1 / np.arange(1, vocabulary + 1)
    generator.shuffle(shares_V)
    return generator.choice(vocabulary, (positions, draws), p=shares_V / shares_V.sum())


def even_expected(items, stacks):
    """Every item as likely as any other, on some stacks."""
    cdf = np.arange(items.num_items + 1) * (2**PRECISION // items.num_items)
    cdf[-1] = 2**PRECISION
    return Expected(np.tile(cdf.astype(np.int32), (stacks, 1)), items)


@pytest.mark.parametrize("with_vectors", [True, False])
@pytest.mark.parametrize("vocabulary", [2, 1024, 1025, 3000, 20_000])
def test_every_token_has_a_share_of_one_item(vocabulary, with_vectors):
    draws_PN = zipf_draws(vocabulary)
    vectors_VD = torch.randn(vocabulary, 6, generator=torch.Generator().manual_seed(0)) if with_vectors else None
    items = group_tokens(draws_PN, vocabulary, alike_VD=vectors_VD)
    assert items.vocabulary == vocabulary
    assert items.whole
    assert items.grouped == (vocabulary > MOST_ITEMS)
    assert items.num_items <= MOST_ITEMS + vocabulary // 4096
    assert np.bincount(items.item_V).max() <= 4096
    often = np.argsort(-np.bincount(draws_PN.ravel(), minlength=vocabulary), kind="stable")[:512]
    assert (np.bincount(items.item_V)[items.item_V[often]] == 1).all()


def test_tokens_with_like_vectors_lie_together():
    """300 directions among 512 clusters: two tokens of one direction are never parted."""
    direction_V = np.arange(6000) % 300
    directions = torch.randn(300, 16, generator=torch.Generator().manual_seed(1))
    items = group_tokens(np.zeros((1, 1), np.int64), 6000, alike_VD=directions[torch.from_numpy(direction_V)])
    shared_V = np.bincount(items.item_V)[items.item_V] > 1
    items_of_direction = [np.unique(items.item_V[shared_V & (direction_V == number)]) for number in range(300)]
    assert max(len(numbers) for numbers in items_of_direction) == 1


def test_more_alike_than_an_item_may_hold_lie_in_several():
    items = group_tokens(np.zeros((1, 1), np.int64), 20_000, alike_VD=torch.ones(20_000, 4))
    assert items.whole
    assert np.bincount(items.item_V).max() == 4096


def test_vectors_of_other_tokens_are_a_bug():
    with pytest.raises(BugError, match="2999 vectors were given for 3000 tokens"):
        group_tokens(zipf_draws(3000), 3000, alike_VD=torch.ones(2999, 4))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), stacks=st.integers(1, 4), num_draws=st.sampled_from([1, 2, 16, 60]))
def test_grouped_draws_come_back(seed, stacks, num_draws):
    """Also a token here and there, where one is wanted."""
    generator = np.random.default_rng(seed)
    items = group_tokens(zipf_draws(2500, seed=seed), 2500)
    expected = even_expected(items, stacks)
    draws = np.sort(generator.integers(0, 2500, (stacks, num_draws)), axis=1)
    tokens, wanted = generator.integers(0, 2500, stacks), generator.random(stacks) < 0.5
    seeds = generator.integers(0, 2**63, stacks).astype(np.uint64)
    pile = Stacks.seeded(seeds)
    expected.push(pile, tokens, wanted)
    push_draws(pile, draws, expected)
    pile = Stacks.from_bytes(pile.to_bytes())
    assert np.array_equal(pop_draws(pile, num_draws, expected), draws)
    assert np.array_equal(expected.pop(pile, wanted)[wanted], tokens[wanted])
    assert pile.hold_only(seeds).all()


def test_a_token_costs_its_item_and_its_share():
    """To two percent: log2 of the items' number, and what the tokens of one item leave open among them."""
    draws_PN = zipf_draws(5000, positions=20_000)
    items = group_tokens(draws_PN, 5000)
    expected = even_expected(items, 1)
    pile = Stacks.seeded(np.array([1], dtype=np.uint64))
    for token in draws_PN[:3000, :1]:
        expected.push(pile, token)
    counts_V = np.bincount(draws_PN.ravel(), minlength=5000) + 0.5
    shares_V = counts_V / np.bincount(items.item_V, weights=counts_V)[items.item_V]
    exact = -np.log2(shares_V[draws_PN[:3000, 0]] / items.num_items).sum()
    assert len(pile.to_bytes()[0]) * 8 == pytest.approx(exact, rel=0.02)


def test_without_a_context_groups_cost_no_more_than_single_tokens():
    """An item times a share is then how often a token is drawn at all, however they are grouped."""
    draws_PN = zipf_draws(5000, positions=20_000)
    zeros_P = np.zeros(len(draws_PN), dtype=np.int64)
    contexts_PC = np.full((len(draws_PN), 4), 5000)
    items = group_tokens(draws_PN, 5000)
    grouped, single = (
        fit_prior(contexts_PC, draws_PN, zeros_P, zeros_P, items=each, width=0, seed=0)
        for each in (items, Items.alone(5000))
    )
    cdf = grouped.expected(contexts_PC[:1]).cdf_nI1[0]
    shares_V = np.diff(cdf)[items.item_V] * (items.share_V.astype(float) + 1) / 2**16
    single_V = np.diff(single.expected(contexts_PC[:1]).cdf_nI1[0])
    counts_V = np.bincount(draws_PN.ravel(), minlength=5000)
    assert (counts_V * np.log2(single_V / shares_V)).sum() / counts_V.sum() < 0.02
