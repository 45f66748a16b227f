"""A small text, random labels of it, and the store that holds them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from potstill.data.sequences import PackedSequences
from potstill.labels.items import group_tokens
from potstill.labels.kinds import DenseLabels, Draws, SoftLabels, TopKLabels
from potstill.labels.prior import Prior, contexts_of
from potstill.labels.prior_fit import fit_prior
from potstill.labels.settings import Dense, LabelKind, Sampled
from potstill.labels.store import LabelStore, LabelWriter
from potstill.labels.weights import levels_of_weights

VOCABULARY = 40


@pytest.fixture
def sequences() -> PackedSequences:
    """Ten rows of at most 9 tokens: one has nothing to score, one is all prompt but its last token."""
    generator = np.random.default_rng(0)
    return PackedSequences(
        generator.integers(1, VOCABULARY, (10, 9)).astype(np.uint16),
        np.array([9, 5, 1, 9, 2, 7, 8, 9, 3, 9], dtype=np.int32),
        np.array([1, 1, 1, 8, 1, 3, 1, 1, 1, 2], dtype=np.int32),
    )


@pytest.fixture
def make_labels() -> Callable[..., SoftLabels]:
    """Labels of so many positions; the first is certain, the second has no tail, the third a tiny one."""

    def make(kind: LabelKind, num_positions: int, seed: int = 0, vocabulary: int = VOCABULARY) -> SoftLabels | Draws:
        generator = torch.Generator().manual_seed(seed)
        logits_PV = torch.randn(num_positions, vocabulary, generator=generator) * 3
        logits_PV[:1, 1:] = -torch.inf
        logits_PV[1:2, min(4, vocabulary) :] = -torch.inf
        logits_PV[2:3].mul_(8)
        logprobs_PV = logits_PV.log_softmax(-1)
        if isinstance(kind, Dense):
            return DenseLabels(logprobs_PV)
        if isinstance(kind, Sampled):
            probabilities_PV = logprobs_PV.exp()
            draws_PN = probabilities_PV.multinomial(kind.draws, replacement=True, generator=generator).sort(-1).values
            entropies_P = torch.special.entr(probabilities_PV).sum(-1)
            levels_PN = None
            if kind.weighted:
                log_weights_PN = (
                    torch.randn(num_positions, vocabulary, generator=generator).double().gather(1, draws_PN)
                )
                levels_PN = levels_of_weights(5 * log_weights_PN, torch.full((num_positions, 1), 0.5))
            return Draws(draws_PN, entropies_P, logprobs_PV[:, 0].clamp(min=-50), logprobs_PV.argmax(-1), levels_PN)
        logprobs_PK, ids_PK = logprobs_PV.topk(kind.k)
        return TopKLabels(ids_PK, logprobs_PK, logprobs_PV.exp().scatter(-1, ids_PK, 0.0).sum(-1))

    return make


@pytest.fixture
def make_prior(sequences) -> Callable[..., Prior]:
    """A prior fitted to what follows in ``sequences``, of a width."""

    def make(width: int = 4, seed: int = 0, *, weighted: bool = False) -> Prior:
        contexts, following = [], []
        for row in range(len(sequences)):
            tokens_1T, scored_1T = sequences.rows([row])
            positions_P = np.flatnonzero(scored_1T[0])
            contexts.append(contexts_of(tokens_1T[0], positions_P, VOCABULARY))
            following.append(tokens_1T[0, positions_P + 1])
        draws_P1 = np.concatenate(following)[:, None]
        levels_P = np.arange(len(draws_P1)) % 256
        return fit_prior(
            np.concatenate(contexts),
            draws_P1,
            levels_P,
            levels_P % 16,
            weight_levels=levels_P if weighted else None,
            items=group_tokens(draws_P1, VOCABULARY),
            width=width,
            seed=seed,
        )

    return make


@pytest.fixture
def make_writer(sequences, make_prior) -> Callable[..., LabelWriter]:
    """A writer of three shards over ``sequences``."""

    def make(directory: Path, kind: LabelKind, **changes) -> LabelWriter:
        bindings = {
            "prior": make_prior(weighted=kind.weighted) if isinstance(kind, Sampled) else None,
            "vocabulary": VOCABULARY,
            "sequences": sequences,
            "teacher_fingerprint": "teacher",
            "tokenizer_fingerprint": "tokenizer",
            "sequences_per_shard": 4,
        }
        return LabelWriter(directory, kind, **{**bindings, **changes})

    return make


@pytest.fixture
def make_store(sequences, make_labels, make_writer) -> Callable[..., SoftLabels]:
    """Write a whole store and return the labels in it, all rows'."""

    def make(directory: Path, kind: LabelKind, **changes) -> SoftLabels | Draws:
        labels = make_labels(kind, sequences.num_scored, vocabulary=changes.get("vocabulary", VOCABULARY))
        writer = make_writer(directory, kind, **changes)
        for rows in writer.missing():
            start = sequences.first(rows.start).num_scored
            writer.write(rows, [labels.at(slice(start, sequences.first(rows.stop).num_scored))])
        writer.finish()
        return labels

    return make


@pytest.fixture
def open_store(sequences) -> Callable[..., LabelStore]:
    """Open a store with the bindings it was written with, but for the changes."""

    def open_(directory: Path, **changes) -> LabelStore:
        bindings = {
            "sequences": sequences,
            "teacher_fingerprint": "teacher",
            "tokenizer_fingerprint": "tokenizer",
        }
        return LabelStore.open(directory, **{**bindings, **changes})

    return open_
