"""The prior is exact integers, a distribution over every token, and knows what follows what."""

from dataclasses import replace

import numpy as np
import pytest

from potstill.core.errors import InputError
from potstill.labels.items import group_tokens
from potstill.labels.prior import Prior, contexts_of, read_prior, write_prior
from potstill.labels.prior_fit import fit_prior, grouping_pays, width_for
from potstill.labels.stacks import PRECISION


def bigram_text(vocabulary=60, positions=6000, draws=8, seed=0):
    """Contexts and draws of a teacher that looks at the last token only, and each token's own distribution."""
    generator = np.random.default_rng(seed)
    logits_VV = generator.normal(size=(vocabulary, vocabulary)) * 2
    shares_VV = np.exp(logits_VV) / np.exp(logits_VV).sum(axis=1, keepdims=True)
    contexts_PC = generator.integers(0, vocabulary, (positions, 4))
    draws_PN = np.stack([generator.choice(vocabulary, draws, p=shares_VV[last]) for last in contexts_PC[:, 0]])
    return contexts_PC, draws_PN, shares_VV


def fitted(width, **changes):
    contexts_PC, draws_PN, shares_VV = bigram_text(**changes)
    zeros_P = np.zeros(len(contexts_PC), dtype=np.int64)
    items = group_tokens(draws_PN, shares_VV.shape[0])
    prior = fit_prior(contexts_PC, draws_PN, zeros_P, zeros_P, items=items, width=width, seed=0)
    return prior, contexts_PC, shares_VV


def surprise_bits(prior, contexts_PC, shares_VV):
    """Mean bits a draw costs under the prior beyond what it costs under the teacher."""
    frequencies_PV = np.diff(prior.expected(contexts_PC).cdf_nI1, axis=1) / 2**PRECISION
    shares_PV = shares_VV[contexts_PC[:, 0]]
    return float((shares_PV * np.log2(shares_PV / frequencies_PV)).sum(axis=1).mean())


def test_a_context_makes_draws_less_surprising():
    """Of what a prior without context misses, one of width 24 finds more than half."""
    blind, contexts_PC, shares_VV = fitted(0)
    seeing, _, _ = fitted(24)
    assert surprise_bits(blind, contexts_PC, shares_VV) > 1.0
    assert surprise_bits(seeing, contexts_PC, shares_VV) < 0.5 * surprise_bits(blind, contexts_PC, shares_VV)


@pytest.mark.parametrize("width", [0, 8])
def test_frequencies_are_a_distribution_over_every_token(width):
    prior, contexts_PC, _ = fitted(width)
    contexts_PC[:5] = prior.vocabulary
    cdf = prior.expected(contexts_PC).cdf_nI1
    assert (cdf[:, 0] == 0).all()
    assert (cdf[:, -1] == 2**PRECISION).all()
    assert (np.diff(cdf, axis=1) >= 1).all()


def test_frequencies_do_not_depend_on_the_batch():
    """One by one or all together, the integers are the same: a decoder may ask in any grouping."""
    prior, contexts_PC, _ = fitted(8)
    together = prior.expected(contexts_PC[:64]).cdf_nI1
    for row in (0, 17, 63):
        assert np.array_equal(prior.expected(contexts_PC[row : row + 1]).cdf_nI1[0], together[row])


def test_the_integers_say_what_python_integers_say():
    """Floats are only a fast way to compute with whole numbers: the obvious loop gives the same scores."""
    prior, contexts_PC, _ = fitted(8)
    for context in contexts_PC[:3].tolist():
        mixed = [
            sum(
                int(prior.embeddings_IR[token, r]) * int(prior.mixers_CRR[place, r, s])
                for place, token in enumerate(context)
                for r in range(8)
            )
            for s in range(8)
        ]
        hidden = [
            max(-127, min(127, number >> prior.shift if prior.shift >= 0 else number << -prior.shift))
            for number in mixed
        ]
        scores = [
            (
                sum(h * int(e) for h, e in zip(hidden, prior.embeddings_IR[token], strict=True)) * prior.scale_m
                >> prior.scale_e
            )
            + int(prior.bias_I[token])
            for token in range(prior.vocabulary)
        ]
        weights = []
        for score in scores:
            most_bits = 30 - prior.vocabulary.bit_length()
            bits, steps = divmod(max(score - max(scores), -most_bits * 256), 256)
            weights.append((256 + steps) << (most_bits + bits) >> 8)
        sums = np.cumsum(weights)
        share = (2**PRECISION - prior.vocabulary) / sums[-1]
        expected = [int(np.floor(total * share)) + token + 1 for token, total in enumerate(sums)]
        expected[-1] = 2**PRECISION
        assert prior.expected(np.array([context])).cdf_nI1[0, 1:].tolist() == expected


def test_written_and_read_it_is_the_same_and_damage_is_found(tmp_path):
    prior, contexts_PC, _ = fitted(8)
    digest = write_prior(tmp_path / "prior", prior)
    read, found = read_prior(tmp_path / "prior")
    assert found == digest
    assert isinstance(read, Prior)
    assert np.array_equal(read.expected(contexts_PC).cdf_nI1, prior.expected(contexts_PC).cdf_nI1)
    content = bytearray((tmp_path / "prior").read_bytes())
    for place in (3, len(content) // 2, len(content) - 1):
        damaged = bytearray(content)
        damaged[place] ^= 1
        (tmp_path / "prior").write_bytes(damaged)
        with pytest.raises(InputError, match="damaged"):
            read_prior(tmp_path / "prior")


def test_items_that_do_not_fit_together_are_refused(tmp_path):
    """A file whose checksum holds, but in which the shares of an item are more than the whole."""
    prior, _, _ = fitted(8)
    items = replace(prior.items, item_V=np.zeros_like(prior.items.item_V))
    write_prior(tmp_path / "prior", replace(prior, items=items))
    with pytest.raises(InputError, match="items don't fit together"):
        read_prior(tmp_path / "prior")


def test_contexts_reach_back_to_the_start_of_the_row():
    contexts = contexts_of(np.array([5, 6, 7, 8, 9]), np.array([0, 2, 4]), vocabulary=40)
    assert contexts.tolist() == [[5, 40, 40, 40], [7, 6, 5, 40], [9, 8, 7, 6]]


def test_a_prior_is_as_wide_as_its_store_can_bear():
    assert width_for(500, 16, 50_000) == 0
    assert width_for(69_000, 16, 2_048) == width_for(69_000, 16, 200_000) == 16
    assert width_for(69_000, 56, 2_048) == 24
    assert width_for(10**7, 50, 8_192) == 64
    assert not grouping_pays(100_000, 16, 32_768)
    assert grouping_pays(1_000_000, 16, 32_768)
