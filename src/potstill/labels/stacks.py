"""Entropy coding of integers, exact and many sequences at once: asymmetric numeral systems, one stack per sequence.

A stack is one large number. Pushing a symbol of frequency f out of 2^k multiplies it by about 2^k / f; popping undoes
that exactly, last in, first out. Bits can also be *popped before anything was pushed on top of them*: a popped symbol
is then a random choice that costs nothing, since the decoder pushes it back. That is how the order of draws, which
nobody needs, is not paid for (``multisets``).

All of it is integer arithmetic, so the bytes don't depend on the machine. The library ``constriction`` codes one
symbol of a changing distribution per Python call; here one call codes a symbol of every sequence.

Shapes: S stacks, n the first n of them, W words, A symbols of an alphabet.
Source: Duda 2013, arXiv 1311.2540; as a stack to pop from first: Townsend et al. 2019, arXiv 1901.04866.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from potstill.core.errors import InputError

__all__ = ["PRECISION", "U64", "Stacks", "certain_unless"]

PRECISION = 28
"""Frequencies are out of 2^28 unless said otherwise; at most 32."""

_WORD = np.uint64(32)
_LOWEST = np.uint64(1 << 32)
_STATE_BYTES = 8

U64 = NDArray[np.uint64]


class Stacks:
    """S stacks that grow and shrink side by side; every operation acts on the first n of them."""

    def __init__(self, states_S: U64, words_SW: NDArray[np.uint32], depths_S: NDArray[np.int64]) -> None:
        self._states_S = states_S
        self._words_SW = words_SW
        self._depths_S = depths_S

    @classmethod
    def seeded(cls, seeds_S: U64) -> "Stacks":
        """New stacks that hold 62 bits each: what is popped first comes from them, and they are there at the end."""
        words_SW = np.zeros((len(seeds_S), 16), dtype=np.uint32)
        return cls(_first_states(seeds_S), words_SW, np.zeros(len(seeds_S), dtype=np.int64))

    @classmethod
    def from_bytes(cls, encoded_S: Sequence[bytes]) -> "Stacks":
        """The stacks whose ``to_bytes`` these are.

        Raises: InputError: the length of one is none that a stack has.
        """
        for number, encoded in enumerate(encoded_S):
            if len(encoded) < _STATE_BYTES or len(encoded) % 4:
                raise InputError(f"{len(encoded)} bytes are no coded labels of a sequence", where=f"sequence {number}")
        depths_S = np.array([(len(encoded) - _STATE_BYTES) // 4 for encoded in encoded_S], dtype=np.int64)
        words_SW = np.zeros((len(encoded_S), int(depths_S.max(initial=0)) + 1), dtype=np.uint32)
        states_S = np.zeros(len(encoded_S), dtype=np.uint64)
        for number, encoded in enumerate(encoded_S):
            words_SW[number, : depths_S[number]] = np.frombuffer(encoded, dtype="<u4", offset=_STATE_BYTES)
            states_S[number] = np.frombuffer(encoded, dtype="<u8", count=1)[0]
        return cls(states_S, words_SW, depths_S)

    def to_bytes(self) -> list[bytes]:
        """Each stack: its state, then its words from the bottom up."""
        return [
            state.astype("<u8").tobytes() + words_W[:depth].astype("<u4").tobytes()
            for state, words_W, depth in zip(self._states_S, self._words_SW, self._depths_S.tolist(), strict=True)
        ]

    def hold_only(self, seeds_S: U64) -> NDArray[np.bool_]:
        """Which stacks are just as ``seeded`` made them: everything that was pushed has been popped."""
        whole_S: NDArray[np.bool_] = (self._depths_S == 0) & (self._states_S == _first_states(seeds_S))
        return whole_S

    def push(self, starts_n: U64, frequencies_n: U64, precision: int = PRECISION) -> None:
        """Push a symbol on each of the first n stacks: its interval [start, start + frequency) out of 2^precision.

        The frequencies are at least 1 and at most 2^precision, which changes nothing.
        """
        n, bits = len(starts_n), np.uint64(precision)
        states_n = self._states_S[:n]
        highest_n = (frequencies_n << (np.uint64(64) - bits)) - np.uint64(1)  # 2^64 - 1 for a certain symbol
        full_n = np.flatnonzero(states_n > highest_n)
        if len(full_n):
            self._make_room(full_n)
            self._words_SW[full_n, self._depths_S[full_n]] = states_n[full_n].astype(np.uint32)
            self._depths_S[full_n] += 1
            states_n[full_n] >>= _WORD
        whole_n, rest_n = np.divmod(states_n, frequencies_n)
        self._states_S[:n] = (whole_n << bits) + rest_n + starts_n

    def peek(self, n: int, precision: int = PRECISION) -> U64:
        """The top of each of the first n stacks, below 2^precision: in the interval of the last symbol pushed."""
        top_n: U64 = self._states_S[:n] & np.uint64((1 << precision) - 1)
        return top_n

    def pop(self, starts_n: U64, frequencies_n: U64, precision: int = PRECISION) -> None:
        """Remove from each of the first n stacks the symbol whose interval ``peek`` lies in.

        Stacks that are popped for more than they hold go on with zeros: what comes out is then nonsense, and
        ``hold_only`` says so at the end.
        """
        n, bits = len(starts_n), np.uint64(precision)
        tops_n = self.peek(n, precision)
        states_n = frequencies_n * (self._states_S[:n] >> bits) + tops_n - starts_n
        low_n = np.flatnonzero(states_n < _LOWEST)
        if len(low_n):
            self._depths_S[low_n] -= 1
            words = np.where(self._depths_S[low_n] >= 0, self._words_SW[low_n, self._depths_S[low_n]], 0)
            states_n[low_n] = (states_n[low_n] << _WORD) | words.astype(np.uint64)
        self._states_S[:n] = states_n

    def _make_room(self, full_n: NDArray[np.int64]) -> None:
        capacity = self._words_SW.shape[1]
        if int(self._depths_S[full_n].max()) >= capacity:
            self._words_SW = np.pad(self._words_SW, ((0, 0), (0, capacity)))


def certain_unless(
    wanted_n: NDArray[np.bool_] | None, starts_n: U64, frequencies_n: U64, precision: int
) -> tuple[U64, U64]:
    """Intervals out of 2^precision; that of certainty, which changes no stack, where no symbol is wanted."""
    if wanted_n is None:
        return starts_n, frequencies_n
    return np.where(wanted_n, starts_n, 0), np.where(wanted_n, frequencies_n, np.uint64(1 << precision))


def _first_states(seeds_S: U64) -> U64:
    """62 bits of each seed, and the bit above them."""
    states_S: U64 = (seeds_S & np.uint64((1 << 62) - 1)) | np.uint64(1 << 62)
    return states_S
