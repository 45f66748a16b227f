"""How draws become bytes and come back: multisets of every position, coded against the prior, a stack per sequence.

A sequence's bytes are its summed entropy (float32, nats) and a stack. The stack holds, for each scored position, a
level of 256 for the log-probability of the true token (to 2 % or 0.01 nat), the draws, their importance weights if they
have any, and which token is the likeliest. It is seeded with the hash of the sequence's tokens: when everything is
popped the hash must be there again, which binds every label to its text.

Shapes: N draws of a position, P scored positions, S sequences side by side, K distinct tokens, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from potstill.core.errors import BugError, InputError
from potstill.data.sequences import PackedSequences
from potstill.labels.kinds import Draws, SampledLabels, SoftLabels
from potstill.labels.likeliest import NOT_AMONG_THEM, first_of_kind, likeliest_of, rank_among
from potstill.labels.multisets import pop_draws, push_draws
from potstill.labels.prior import CONTEXT_TOKENS, Prior, contexts_of
from potstill.labels.settings import Sampled
from potstill.labels.shard import AGAIN, Shard
from potstill.labels.stacks import PRECISION, U64, Stacks
from potstill.labels.weights import pop_weights, push_weights, weight_of_level

__all__ = ["DrawsCoder", "DrawsReader", "level_of", "logprob_of_level"]

_FREQUENCIES_AT_ONCE = 1 << 23
_TABLE_BITS = 16
_LEVELS_PER_ROOT_NAT = 48
_ENTROPY_BYTES = 4


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

    def cdf(self, wave: int) -> NDArray[np.int64]:
        """What the prior says at this wave's positions: [n, V + 1]."""
        return self._prior.cdf(self._contexts_SWC[: self.width(wave), wave])


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
        group = max(_FREQUENCIES_AT_ONCE // self._prior.vocabulary, 1)
        for first in range(0, len(rows), group):
            waves = _Waves(self._sequences, np.array(rows[first : first + group], dtype=np.int64), self._prior)
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
        rank_cdf, level_cdf = self._prior.rank_cdf, self._prior.level_cdf
        for wave in reversed(range(waves.num_waves)):
            positions_n = starts_S[: waves.width(wave)] + wave
            cdf_nV1 = waves.cdf(wave)
            draws_nN, likeliest_n = drawn.draws_PN[positions_n], drawn.likeliest_P[positions_n]
            ranks_n = rank_among(draws_nN, likeliest_n)
            stacks.push(*_interval_where(ranks_n == NOT_AMONG_THEM, cdf_nV1, likeliest_n))
            stacks.push(*_interval(rank_cdf, ranks_n), _TABLE_BITS)
            if drawn.weights_PN is not None:
                push_weights(stacks, draws_nN, drawn.weights_PN[positions_n], self._prior.weight_cdf)
            push_draws(stacks, draws_nN, cdf_nV1)
            stacks.push(*_interval(level_cdf, drawn.levels_P[positions_n]), _TABLE_BITS)
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
        for shard in shards:
            draws_PN, weights_PN = self._decoded(sequences, prior, shard)
            first_PN = first_of_kind(draws_PN)
            ids.append(draws_PN[first_PN].astype(id_dtype))
            at = np.append(np.flatnonzero(first_PN), draws_PN.size)
            counts.append(np.diff(at).astype(np.uint8))
            weights.append(weights_PN[first_PN].astype(np.uint16) if kind.weighted else _NO_WEIGHTS)
            start = int(self._start_N[shard.rows.start]) if len(shard.rows) else 0
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

    def _decoded(
        self, sequences: PackedSequences, prior: Prior, shard: Shard
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """A shard's draws, each position's in ascending order, and the levels of their weights: [P, N], [P, N] or [0].

        Raises: InputError: what a sequence's bytes hold is not the draws of its tokens.
        """
        first = int(self._start_N[shard.rows.start]) if len(shard.rows) else 0
        pieces = shard.pieces()
        draws_PN = np.zeros((sum(self._count(row) for row in shard.rows), self._kind.draws), dtype=np.int64)
        weights_PN = np.zeros_like(draws_PN if self._kind.weighted else _NONE)
        group = max(_FREQUENCIES_AT_ONCE // prior.vocabulary, 1)
        for at in range(0, len(shard.rows), group):
            waves = _Waves(sequences, np.array(shard.rows[at : at + group], dtype=np.int64), prior)
            scored = waves.width(0)
            encoded = [pieces[row - shard.rows.start] for row in waves.rows_S[:scored].tolist()]
            stacks = Stacks.from_bytes([piece[_ENTROPY_BYTES:] for piece in encoded])
            entropies = [np.frombuffer(piece, dtype="<f4", count=1)[0] for piece in encoded]
            self._entropy_N[waves.rows_S[:scored]] = entropies
            self._pop(waves, stacks, prior, draws_PN, weights_PN, first)
            whole_S = stacks.hold_only(waves.seeds_S[:scored])
            if not whole_S.all():
                row = int(waves.rows_S[:scored][~whole_S].min())
                raise InputError(
                    f"was made from another text, or is damaged: the labels of row {row} don't end in its hash",
                    where=str(shard.path),
                    next_step=AGAIN,
                )
        return draws_PN, weights_PN

    def _pop(
        self,
        waves: _Waves,
        stacks: Stacks,
        prior: Prior,
        draws_PN: NDArray[np.int64],
        weights_PN: NDArray[np.int64],
        first: int,
    ) -> None:
        for wave in range(waves.num_waves):
            width = waves.width(wave)
            positions_n = self._start_N[waves.rows_S[:width]] + wave
            cdf_nV1 = waves.cdf(wave)
            self._levels_P[positions_n] = _pop_from_table(stacks, width, prior.level_cdf)
            draws_nN = pop_draws(stacks, self._kind.draws, cdf_nV1)
            if self._kind.weighted:
                weights_PN[positions_n - first] = pop_weights(stacks, draws_nN, prior.weight_cdf)
            ranks_n = _pop_from_table(stacks, width, prior.rank_cdf)
            unnamed_n = ranks_n == NOT_AMONG_THEM
            tops_n1 = stacks.peek(width).astype(np.int64)[:, None]
            likeliest_n = np.where(unnamed_n, (cdf_nV1[:, 1:] <= tops_n1).sum(axis=1), likeliest_of(draws_nN, ranks_n))
            stacks.pop(*_interval_where(unnamed_n, cdf_nV1, likeliest_n))
            self._likeliest_P[positions_n] = likeliest_n
            draws_PN[positions_n - first] = draws_nN

    def _count(self, row: int) -> int:
        return int(self._end_N[row] - self._start_N[row])


_NONE = np.empty(0, dtype=np.int64)
_NO_WEIGHTS = np.empty(0, dtype=np.uint16)


def _interval(cdf: NDArray[np.int64], symbols_n: NDArray[np.int64]) -> tuple[U64, U64]:
    """Start and frequency of symbols of one table."""
    starts_n = cdf[symbols_n]
    return starts_n.astype(np.uint64), (cdf[symbols_n + 1] - starts_n).astype(np.uint64)


def _interval_where(
    wanted_n: NDArray[np.bool_], cdf_nV1: NDArray[np.int64], tokens_n: NDArray[np.int64]
) -> tuple[U64, U64]:
    """Start and frequency of a token in its position's table; of certainty, which costs nothing, where not wanted."""
    rows_n = np.arange(len(cdf_nV1))
    starts_n = np.where(wanted_n, cdf_nV1[rows_n, tokens_n], 0)
    ends_n = np.where(wanted_n, cdf_nV1[rows_n, tokens_n + 1], 1 << PRECISION)
    return starts_n.astype(np.uint64), (ends_n - starts_n).astype(np.uint64)


def _pop_from_table(stacks: Stacks, n: int, cdf: NDArray[np.int64]) -> NDArray[np.int64]:
    symbols_n = np.searchsorted(cdf, stacks.peek(n, _TABLE_BITS).astype(np.int64), side="right") - 1
    stacks.pop(*_interval(cdf, symbols_n), _TABLE_BITS)
    return symbols_n
