"""How draws become bytes and come back: multisets of every position, coded against the prior, a stack per sequence.

A sequence's bytes are its summed entropy (float32, nats) and a stack. The stack holds, for each scored position, a
level of 256 for the log-probability of the true token (to 2 % or 0.01 nat), the draws, their importance weights if they
have any, and which token is the likeliest. It is seeded with the hash of the sequence's tokens: when everything is
popped the hash must be there again, which binds every label to its text.

Shapes: N draws of a position, P scored positions, S sequences side by side, K distinct tokens.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from potstill.core.errors import BugError, InputError
from potstill.data.sequences import PackedSequences
from potstill.labels.items import Expected
from potstill.labels.kinds import Draws, SampledLabels, SoftLabels
from potstill.labels.likeliest import NOT_AMONG_THEM, first_of_kind, likeliest_of, rank_among
from potstill.labels.multisets import pop_draws, push_draws
from potstill.labels.prior import CONTEXT_TOKENS, Prior, contexts_of
from potstill.labels.settings import Sampled
from potstill.labels.shard import AGAIN, Shard
from potstill.labels.stacks import Stacks
from potstill.labels.tables import pop_symbols, push_symbols
from potstill.labels.weights import pop_weights, push_weights, weight_of_level

__all__ = ["DrawsCoder", "DrawsReader", "level_of", "logprob_of_level"]

_MOST_SIDE_BY_SIDE = 2048
_POSITIONS_AT_ONCE = 1 << 18
_LEVELS_PER_ROOT_NAT = 48
_ENTROPY_BYTES = 4

_Integers = NDArray[np.integer[Any]]


def level_of(logprobs_P: NDArray[np.float32]) -> NDArray[np.int64]:
    """The nearest of 256 levels, which lie at -(level / 48)^2 nats: 0 to -28.2."""
    roots_P = np.sqrt(np.maximum(-logprobs_P.astype(np.float64), 0))
    levels_P: NDArray[np.int64] = np.rint(roots_P * _LEVELS_PER_ROOT_NAT).clip(0, 255).astype(np.int64)
    return levels_P


def logprob_of_level(levels_P: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The log-probability, in nats, that a level stands for."""
    roots_P: NDArray[np.float32] = levels_P.astype(np.float32) / np.float32(_LEVELS_PER_ROOT_NAT)
    return -roots_P * roots_P


class _Waves:
    """Sequences side by side, longest first: wave j is the j-th scored position of all that have one."""

    def __init__(self, sequences: PackedSequences, rows: NDArray[np.int64], prior: Prior) -> None:
        counts = sequences.scored_of(rows)
        order = np.argsort(-counts, kind="stable")
        self.rows_S = rows[order]
        self.counts_S = counts[order]
        self.num_waves = int(self.counts_S.max(initial=0))
        self._prior = prior
        self._contexts_SWC = np.full((len(rows), self.num_waves, CONTEXT_TOKENS), prior.vocabulary, dtype=np.int64)
        for number, (row, count) in enumerate(zip(self.rows_S.tolist(), self.counts_S.tolist(), strict=True)):
            first = max(int(sequences.prompts_N[row]) - 1, 0)
            tokens_T = sequences.tokens_NT[row].astype(np.int64)
            self._contexts_SWC[number, :count] = contexts_of(
                tokens_T, np.arange(first, first + count), prior.vocabulary
            )
        hashes = [int.from_bytes(sequences.token_hash(row)[:8], "little") for row in self.rows_S.tolist()]
        self.seeds_S = np.array(hashes, dtype=np.uint64)

    def width(self, wave: int) -> int:
        """How many sequences have a position in this wave."""
        return int((self.counts_S > wave).sum())

    def expected(self, wave: int) -> Expected:
        """What the prior says at this wave's positions."""
        return self._prior.expected(self._contexts_SWC[: self.width(wave), wave])


class DrawsCoder:
    """Encodes the draws of the rows of a shard."""

    def __init__(self, sequences: PackedSequences, kind: Sampled, prior: Prior) -> None:
        self._sequences = sequences
        self._kind = kind
        self._prior = prior

    def body(self, rows: range, parts: Iterable[SoftLabels | Draws]) -> tuple[NDArray[np.int64], list[bytes]]:
        """The bytes of each row and how many they are."""
        draws = self._gathered(parts)
        counts_N = self._sequences.scored_of(slice(rows.start, rows.stop))
        if len(draws.draws_PN) != counts_N.sum():
            raise BugError(f"{len(draws.draws_PN)} labels were given for {counts_N.sum()} scored positions")
        starts_N = np.cumsum(counts_N) - counts_N
        encoded = [b""] * len(rows)
        size = _side_by_side(self._sequences)
        for first in range(0, len(rows), size):
            group = np.array(rows[first : first + size], dtype=np.int64)
            waves = _Waves(self._sequences, group, self._prior)
            starts_S = starts_N[waves.rows_S - rows.start]
            stacks = self._pushed(waves, starts_S, draws)
            for row, start, count, stack in zip(
                waves.rows_S.tolist(), starts_S.tolist(), waves.counts_S.tolist(), stacks.to_bytes(), strict=True
            ):
                entropy = np.float32(draws.entropies_P[start : start + count].sum(dtype=np.float64))
                encoded[row - rows.start] = entropy.astype("<f4").tobytes() + stack if count else b""
        return np.array([len(piece) for piece in encoded], dtype=np.int64), encoded

    def _gathered(self, parts: Iterable[SoftLabels | Draws]) -> "_Drawn":
        kind = self._kind
        taken = []
        for part in parts:
            weighted = isinstance(part, Draws) and part.weight_levels_PN is not None
            if not isinstance(part, Draws) or part.draws_PN.shape[1] != kind.draws or weighted != kind.weighted:
                raise BugError(f"a store of {kind} was given {type(part).__name__} of another shape")
            taken.append(part)
        if not taken:
            none_PN = np.empty((0, kind.draws), np.int64)
            return _Drawn(none_PN, np.empty(0, np.float32), _NONE, _NONE, none_PN if kind.weighted else None)
        weights = [part.weight_levels_PN.cpu().numpy() for part in taken if part.weight_levels_PN is not None]
        return _Drawn(
            np.concatenate([part.draws_PN.cpu().numpy() for part in taken]),
            np.concatenate([part.entropies_P.cpu().numpy() for part in taken]),
            level_of(np.concatenate([part.true_logprobs_P.cpu().numpy() for part in taken])),
            np.concatenate([part.likeliest_P.cpu().numpy() for part in taken]),
            np.concatenate(weights) if weights else None,
        )

    def _pushed(self, waves: _Waves, starts_S: NDArray[np.int64], drawn: "_Drawn") -> Stacks:
        """Everything in the order opposite to ``_pop``: last pushed, first popped."""
        stacks = Stacks.seeded(waves.seeds_S)
        for wave in reversed(range(waves.num_waves)):
            positions_n = starts_S[: waves.width(wave)] + wave
            expected = waves.expected(wave)
            draws_nN, likeliest_n = drawn.draws_PN[positions_n], drawn.likeliest_P[positions_n]
            ranks_n = rank_among(draws_nN, likeliest_n)
            expected.push(stacks, likeliest_n, ranks_n == NOT_AMONG_THEM)
            push_symbols(stacks, ranks_n, self._prior.rank_cdf)
            if drawn.weights_PN is not None:
                push_weights(stacks, draws_nN, drawn.weights_PN[positions_n], self._prior.weight_cdf)
            push_draws(stacks, draws_nN, expected)
            push_symbols(stacks, drawn.levels_P[positions_n], self._prior.level_cdf)
        return stacks


@dataclass(frozen=True)
class _Drawn:
    """What is coded of all positions of a shard, as arrays."""

    draws_PN: NDArray[np.int64]
    entropies_P: NDArray[np.float32]
    levels_P: NDArray[np.int64]
    likeliest_P: NDArray[np.int64]
    weights_PN: NDArray[np.int64] | None


class DrawsReader:
    """All draws of a store, decoded once: a token id and a count for each distinct draw, and its weight if it has one.

    Cost: about 3 bytes of memory per distinct draw, 5 where the vocabulary exceeds 65,536; 2 more for a weight.
    """

    def __init__(self, sequences: PackedSequences, kind: Sampled, prior: Prior, shards: Sequence[Shard]) -> None:
        self._kind = kind
        counts_N = sequences.scored_by_row
        num_positions = int(counts_N.sum())
        self._end_N = np.cumsum(counts_N)
        self._start_N = self._end_N - counts_N
        self._entropy_N = np.zeros(len(sequences), dtype=np.float32)
        self._levels_P = np.zeros(num_positions, dtype=np.uint8)
        self._bounds_P1 = np.zeros(num_positions + 1, dtype=np.int64)
        id_dtype = np.uint16 if prior.vocabulary <= 1 << 16 else np.uint32
        self._likeliest_P = np.zeros(num_positions, dtype=id_dtype)
        ids, counts, weights = [], [], []
        size = _side_by_side(sequences)
        for first in range(0, len(sequences), size):
            rows = np.arange(first, min(first + size, len(sequences)))
            draws_PN, weights_PN = self._decoded(_Waves(sequences, rows, prior), prior, shards)
            first_PN = first_of_kind(draws_PN)
            ids.append(draws_PN[first_PN].astype(id_dtype))
            at = np.append(np.flatnonzero(first_PN), draws_PN.size)
            counts.append(np.diff(at).astype(np.uint8))
            weights.append(weights_PN[first_PN].astype(np.uint16) if kind.weighted else _NO_WEIGHTS)
            start = int(self._start_N[first])
            self._bounds_P1[start + 1 : start + 1 + len(draws_PN)] = first_PN.sum(axis=1)
        self._bounds_P1 = np.cumsum(self._bounds_P1)
        self._ids = np.concatenate(ids) if ids else np.empty(0, id_dtype)
        self._counts = np.concatenate(counts) if counts else np.empty(0, np.uint8)
        self._weight_levels = np.concatenate(weights) if weights else _NO_WEIGHTS

    def read(self, rows_B: NDArray[np.int64]) -> SampledLabels:
        """The labels of these rows' scored positions, in the order of the rows given, then of the positions."""
        rows = rows_B.tolist()
        positions_P = np.concatenate([np.arange(self._start_N[row], self._end_N[row]) for row in rows] or [_NONE])
        starts_P = self._bounds_P1[positions_P]
        widths_P = self._bounds_P1[positions_P + 1] - starts_P
        columns_K = np.arange(int(widths_P.max(initial=1)))
        there_PK = columns_K < widths_P[:, None]
        at_PK = np.where(there_PK, starts_P[:, None] + columns_K, 0)
        ids_PK = np.where(there_PK, self._ids[at_PK], 0) if len(self._ids) else at_PK
        counts_PK = np.where(there_PK, self._counts[at_PK], 0) if len(self._counts) else at_PK
        weights_PK = counts_PK.astype(np.float32) / np.float32(self._kind.draws)
        if len(self._weight_levels):
            weights_PK *= weight_of_level(self._weight_levels[at_PK])
        num_positions = self._end_N[rows_B] - self._start_N[rows_B]
        means = self._entropy_N[rows_B] / np.maximum(num_positions, 1)
        return SampledLabels(
            torch.from_numpy(ids_PK.astype(np.int64)),
            torch.from_numpy(weights_PK),
            torch.from_numpy(np.repeat(means, num_positions).astype(np.float32)),
            torch.from_numpy(self._likeliest_P[positions_P].astype(np.int64)),
        )

    @property
    def true_logprobs(self) -> NDArray[np.float32]:
        """What the teacher gives to the token that really follows, at every position of the store; nats."""
        return logprob_of_level(self._levels_P)

    def _decoded(self, waves: _Waves, prior: Prior, shards: Sequence[Shard]) -> tuple[_Integers, _Integers]:
        """Draws of a range of rows, each position's in ascending order, and levels of their weights: [P, N] each.

        Raises: InputError: what a sequence's bytes hold is not the draws of its tokens.
        """
        first = int(self._start_N[waves.rows_S.min()])
        draws_PN = np.zeros((int(waves.counts_S.sum()), self._kind.draws), dtype=np.int32)
        weights_PN = np.zeros(draws_PN.shape if self._kind.weighted else 0, dtype=np.int16)
        rows_S = waves.rows_S[: waves.width(0)]
        encoded = [_shard_of(shards, row).piece(row) for row in rows_S.tolist()]
        stacks = Stacks.from_bytes([piece[_ENTROPY_BYTES:] for piece in encoded])
        self._entropy_N[rows_S] = [np.frombuffer(piece, dtype="<f4", count=1)[0] for piece in encoded]
        self._pop(waves, stacks, prior, draws_PN, weights_PN, first)
        whole_S = stacks.hold_only(waves.seeds_S[: len(rows_S)])
        if not whole_S.all():
            row = int(rows_S[~whole_S].min())
            raise InputError(
                f"was made from another text, or is damaged: the labels of row {row} don't end in its hash",
                where=str(_shard_of(shards, row).path),
                next_step=AGAIN,
            )
        return draws_PN, weights_PN

    def _pop(
        self,
        waves: _Waves,
        stacks: Stacks,
        prior: Prior,
        draws_PN: _Integers,
        weights_PN: _Integers,
        first: int,
    ) -> None:
        for wave in range(waves.num_waves):
            width = waves.width(wave)
            positions_n = self._start_N[waves.rows_S[:width]] + wave
            expected = waves.expected(wave)
            self._levels_P[positions_n] = pop_symbols(stacks, width, prior.level_cdf)
            draws_nN = pop_draws(stacks, self._kind.draws, expected)
            if self._kind.weighted:
                weights_PN[positions_n - first] = pop_weights(stacks, draws_nN, prior.weight_cdf)
            ranks_n = pop_symbols(stacks, width, prior.rank_cdf)
            unnamed_n = ranks_n == NOT_AMONG_THEM
            self._likeliest_P[positions_n] = np.where(
                unnamed_n, expected.pop(stacks, unnamed_n), likeliest_of(draws_nN, ranks_n)
            )
            draws_PN[positions_n - first] = draws_nN


_NONE = np.empty(0, dtype=np.int64)
_NO_WEIGHTS = np.empty(0, dtype=np.uint16)


def _side_by_side(sequences: PackedSequences) -> int:
    """How many sequences are coded in step: many, for speed; fewer long ones, for memory."""
    return max(min(_MOST_SIDE_BY_SIDE, _POSITIONS_AT_ONCE // max(sequences.tokens_per_sequence, 1)), 1)


def _shard_of(shards: Sequence[Shard], row: int) -> Shard:
    """The shard that holds a row, of shards that follow one another."""
    return shards[bisect_right(shards, row, key=lambda shard: shard.rows.start) - 1]
