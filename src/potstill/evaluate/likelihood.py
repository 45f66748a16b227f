"""How well does each model predict held-out text, and how close is it to the reference?

Shapes: N sequences, B sequences of a chunk, T tokens, P scored positions of a chunk, V vocabulary.

Sums are kept per sequence, never only in total: positions of one sentence are not independent, so the interval of
``potstill.evaluate.bootstrap`` resamples whole sequences.
"""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.core import interrupt
from potstill.core.errors import BugError, InputError
from potstill.core.trace import Trace
from potstill.data.sequences import PackedSequences
from potstill.runtime.engine import Engine

__all__ = ["Scores", "score"]

_CHUNK_BYTES = 64 << 20
_BLOCK_BYTES = 2 << 20
_PROGRESS_S = 0.3


@dataclass(frozen=True)
class Scores:
    """What one engine gave on every sequence, as sums over its scored positions.

    Shapes: nats_N float64, -ln p(true next token); scored_N, correct_N, agreeing_N int64, positions;
    reference_kl_N float64, KL(reference || engine) in nats. The last two are None without a reference.
    A top-1 prediction is the likeliest token, of equals the one with the lowest id.
    """

    nats_N: NDArray[np.float64]
    scored_N: NDArray[np.int64]
    correct_N: NDArray[np.int64]
    agreeing_N: NDArray[np.int64] | None = None
    reference_kl_N: NDArray[np.float64] | None = None

    @property
    def num_scored(self) -> int:
        return int(self.scored_N.sum())

    @property
    def nats_per_position(self) -> float:
        """Mean cross-entropy over all scored positions."""
        return float(self.nats_N.sum()) / self.num_scored

    @property
    def perplexity(self) -> float:
        """exp(nats per scored position); infinite where float64 can't hold it."""
        mean = self.nats_per_position
        return math.exp(mean) if mean < 709 else math.inf

    @property
    def accuracy(self) -> float:
        """Share of scored positions whose top-1 prediction is the true next token."""
        return int(self.correct_N.sum()) / self.num_scored

    @property
    def agreement(self) -> float | None:
        """Share of scored positions whose top-1 prediction is the reference's; None without a reference."""
        return None if self.agreeing_N is None else int(self.agreeing_N.sum()) / self.num_scored

    @property
    def reference_kl_nats(self) -> float | None:
        """Mean KL(reference || engine) over the whole vocabulary; None without a reference."""
        return None if self.reference_kl_N is None else float(self.reference_kl_N.sum()) / self.num_scored


def score(
    engines: Mapping[str, Engine], reference: str | None, sequences: PackedSequences, trace: Trace
) -> dict[str, Scores]:
    """Score every engine on the same positions, in one pass over the text.

    Chunks of rows are the outer loop and engines the inner one, so the reference's distribution of a chunk is computed
    once and memory is bounded by the chunk, not by the text. Where vocabularies differ in size (padded rows), all
    engines are compared on the ids that all have, renormalised, and a warning says so.

    Shapes: ``reference`` names one of ``engines``.
    Returns: the scores by the names of ``engines``.
    Raises: InputError: no position is scored, a token lies outside a vocabulary, or logits are no numbers.
    Cost: up to five float32 copies of a chunk of 64 MiB of logits (of one row, if that is more).
    """
    if not engines or (reference is not None and reference not in engines):
        raise ValueError(f"the reference {reference!r} is none of the engines {sorted(engines)}")
    if sequences.num_scored == 0:
        raise InputError("holds no scored position, so nothing can be measured", where="the test text")
    vocabulary = _common_vocabulary(engines, sequences, trace)
    order = ([reference] if reference is not None else []) + [name for name in engines if name != reference]
    totals = {name: _empty(len(sequences), with_reference=reference is not None) for name in order}
    told = -math.inf
    for rows_B in _chunks(sequences, vocabulary):
        text = _Text(sequences, rows_B)
        reference_chunk: _Chunk | None = None
        for name in order:
            interrupt.check()
            chunk = _Chunk(_scored_logits(name, engines[name], text, vocabulary), name)
            if name == reference:
                reference_chunk = chunk
            _add(totals[name], text, chunk, reference_chunk)
        if time.monotonic() - told > _PROGRESS_S or rows_B[-1] == len(sequences) - 1:
            told = time.monotonic()
            trace.progress("scoring", int(rows_B[-1]) + 1, len(sequences), "sequences")
    return {name: totals[name] for name in engines}


class _Text:
    """The tokens of a chunk of rows, cut to the longest of them; for each scored position its row and next token."""

    def __init__(self, sequences: PackedSequences, rows_B: NDArray[np.int64]) -> None:
        self.rows_B = rows_B
        used = int(sequences.lengths_N[rows_B].max())
        tokens_BT, scored_BT = sequences.rows(rows_B)
        self.tokens_BT = tokens_BT[:, :used]
        self.scored_BT = scored_BT[:, :used]
        self.row_P, position_P = np.nonzero(self.scored_BT)
        self.next_P = tokens_BT[self.row_P, position_P + 1]


class _Chunk:
    """Logits of a chunk's scored positions, shifted in place so that the largest is 0, and what follows from them."""

    def __init__(self, logits_PV: NDArray[np.float32], name: str) -> None:
        num_positions = len(logits_PV)
        self.shifted_PV = logits_PV
        self.weights_PV = np.empty_like(logits_PV)
        self.top_P = np.empty(num_positions, dtype=np.int64)
        self.total_P = np.empty(num_positions, dtype=np.float64)
        for block in _blocks(logits_PV):
            shifted = self.shifted_PV[block]
            self.top_P[block] = shifted.argmax(-1)
            highest_P1 = shifted.max(-1, keepdims=True)
            if not (np.isfinite(highest_P1).all() and np.isfinite(shifted.min())):
                raise InputError(
                    "gives logits that are no finite numbers on the test text",
                    where=f"model {name!r}",
                    next_step="the model is damaged, or overflows in its dtype; look at its training curve",
                )
            shifted -= highest_P1
            np.exp(shifted, out=self.weights_PV[block])
            self.total_P[block] = self.weights_PV[block].sum(-1, dtype=np.float64)

    def nats(self, next_P: NDArray[np.int64]) -> NDArray[np.float64]:
        """-ln p(next), by position."""
        chosen_P = self.shifted_PV[np.arange(len(next_P)), next_P].astype(np.float64)
        return np.asarray(np.log(self.total_P) - chosen_P, dtype=np.float64)

    def kl_from(self, reference: "_Chunk") -> NDArray[np.float64]:
        """KL(reference || this), by position: sum p (a - b) - (ln Z_a - ln Z_b), for shifted logits a and b."""
        kl_P = np.log(self.total_P) - np.log(reference.total_P)
        for block in _blocks(self.shifted_PV):
            difference = reference.shifted_PV[block] - self.shifted_PV[block]
            difference *= reference.weights_PV[block]
            kl_P[block] += difference.sum(-1, dtype=np.float64) / reference.total_P[block]
        return np.asarray(np.maximum(kl_P, 0.0), dtype=np.float64)  # below zero is rounding only


def _blocks(array_PV: NDArray[np.float32]) -> Iterator[slice]:
    """Slices of positions that fit the processor's cache: the passes over a block then cost little."""
    size = max(1, _BLOCK_BYTES // (4 * array_PV.shape[1]))
    for start in range(0, len(array_PV), size):
        yield slice(start, start + size)


def _chunks(sequences: PackedSequences, vocabulary: int) -> Iterator[NDArray[np.int64]]:
    size = max(1, _CHUNK_BYTES // (4 * sequences.tokens_per_sequence * vocabulary))
    for start in range(0, len(sequences), size):
        yield np.arange(start, min(start + size, len(sequences)), dtype=np.int64)


def _empty(num_sequences: int, *, with_reference: bool) -> Scores:
    return Scores(
        nats_N=np.zeros(num_sequences),
        scored_N=np.zeros(num_sequences, dtype=np.int64),
        correct_N=np.zeros(num_sequences, dtype=np.int64),
        agreeing_N=np.zeros(num_sequences, dtype=np.int64) if with_reference else None,
        reference_kl_N=np.zeros(num_sequences) if with_reference else None,
    )


def _add(totals: Scores, text: "_Text", chunk: "_Chunk", reference: "_Chunk | None") -> None:
    """Put the sums over a chunk's positions at their sequences."""
    rows_B, row_P, next_P = text.rows_B, text.row_P, text.next_P

    def by_row(values_P: NDArray[np.float64] | NDArray[np.bool_]) -> NDArray[Any]:
        sums_B: NDArray[Any] = np.bincount(row_P, weights=values_P, minlength=len(rows_B))
        return sums_B

    totals.nats_N[rows_B] = by_row(chunk.nats(next_P))
    totals.scored_N[rows_B] = by_row(np.ones(len(row_P)))
    totals.correct_N[rows_B] = by_row(chunk.top_P == next_P)
    if reference is not None and totals.agreeing_N is not None and totals.reference_kl_N is not None:
        totals.agreeing_N[rows_B] = by_row(chunk.top_P == reference.top_P)
        totals.reference_kl_N[rows_B] = by_row(chunk.kl_from(reference))


def _scored_logits(name: str, engine: Engine, text: "_Text", vocabulary: int) -> NDArray[np.float32]:
    logits_BTV = engine.logits(text.tokens_BT)
    if logits_BTV.shape != (*text.tokens_BT.shape, engine.facts.vocabulary):
        raise BugError(f"gave logits {logits_BTV.shape} for tokens {text.tokens_BT.shape}", where=f"engine {name!r}")
    logits_PV = logits_BTV[text.scored_BT]
    return np.ascontiguousarray(logits_PV[:, :vocabulary], dtype=np.float32)


def _common_vocabulary(engines: Mapping[str, Engine], sequences: PackedSequences, trace: Trace) -> int:
    sizes = {name: engine.facts.vocabulary for name, engine in engines.items()}
    vocabulary = min(sizes.values())
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
        trace.warning(f"vocabularies differ ({listed}): all are compared on the first {vocabulary:,} ids")
    largest = int(sequences.tokens_NT.max())
    if largest >= vocabulary:
        raise InputError(
            f"holds token {largest:,}, but a model knows only {vocabulary:,} tokens",
            where="the test text",
            next_step="evaluate on text that was encoded with the models' own tokenizer",
        )
    return vocabulary
