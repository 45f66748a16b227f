"""Packed sequences: one split of the text as a memory-mapped [sequences, tokens] array that knows its padding.

Shapes: N sequences, T tokens per sequence, B rows of a batch.

A *position* t of a row predicts the token at t + 1. It is a *scored position* if that token exists and is not part of
a prompt; padding is never scored.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.core.durable import replacing
from potstill.core.errors import InputError

__all__ = ["PackedSequences", "epoch_order"]

COLUMNS_PER_STEP = 8
TOKEN_DTYPES = (np.dtype(np.uint16), np.dtype(np.uint32))


@dataclass(frozen=True)
class PackedSequences:
    """Rows of token ids, right-padded with zeros.

    Shapes: tokens_NT uint16 or uint32; lengths_N int32, tokens that are no padding, the leading
    beginning-of-text token counted; prompts_N int32, leading tokens that are context only (1 = only the
    beginning-of-text token).
    """

    tokens_NT: NDArray[Any]
    lengths_N: NDArray[np.int32]
    prompts_N: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.lengths_N)

    @property
    def tokens_per_sequence(self) -> int:
        """T."""
        return int(self.tokens_NT.shape[1])

    @property
    def scored_by_row(self) -> NDArray[np.int64]:
        """Scored positions of each row."""
        return self.scored_of(slice(None))

    def scored_of(self, rows: NDArray[np.int64] | slice) -> NDArray[np.int64]:
        """Scored positions of each of some rows."""
        scored: NDArray[np.int64] = np.maximum(self.lengths_N[rows].astype(np.int64) - self.prompts_N[rows], 0)
        return scored

    @property
    def num_scored(self) -> int:
        """How many positions are scored in all rows together."""
        return int(self.scored_by_row.sum())

    def first(self, num_sequences: int) -> "PackedSequences":
        """The first rows, without copying them."""
        return PackedSequences(
            self.tokens_NT[:num_sequences], self.lengths_N[:num_sequences], self.prompts_N[:num_sequences]
        )

    def rows(self, rows_B: NDArray[np.int64] | Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Token ids int64 [B, T'] and scored bool [B, T'] of the named rows; the last column is never scored.

        T' is the length of the longest of them, rounded up to a multiple of 8 within T: padding costs as much as text,
        and kernels are compiled per shape, so few shapes should occur.
        """
        index_B = np.asarray(rows_B, dtype=np.int64)
        longest = int(self.lengths_N[index_B].max(initial=1))
        longest = min(longest + -longest % COLUMNS_PER_STEP, self.tokens_per_sequence)
        tokens_BT = self.tokens_NT[index_B, :longest].astype(np.int64)
        next_T = np.arange(1, longest + 1)
        scored_BT = (next_T >= self.prompts_N[index_B, None]) & (next_T < self.lengths_N[index_B, None])
        return tokens_BT, scored_BT

    def token_hash(self, row: int) -> bytes:
        """16 bytes that bind a label to the tokens it was computed on, and to which of them are scored."""
        length, prompt = int(self.lengths_N[row]), int(self.prompts_N[row])
        tokens_T = np.ascontiguousarray(self.tokens_NT[row, :length].astype("<u4"))
        return hashlib.sha256(prompt.to_bytes(4, "little") + tokens_T.tobytes()).digest()[:16]

    def save(self, directory: Path, split: str) -> None:
        """Write ``split.tokens.npy``, ``split.lengths.npy`` and ``split.prompts.npy``."""
        for name, array in (("tokens", self.tokens_NT), ("lengths", self.lengths_N), ("prompts", self.prompts_N)):
            with replacing(directory / f"{split}.{name}.npy") as temporary, temporary.open("wb") as file:
                np.save(file, array, allow_pickle=False)

    @classmethod
    def load(cls, directory: Path, split: str) -> "PackedSequences":
        """Memory-map a split.

        Raises: InputError: a file is missing, damaged, or of another type or length.
        """
        tokens_NT = _load(directory / f"{split}.tokens.npy")
        lengths_N = _load(directory / f"{split}.lengths.npy")
        prompts_N = _load(directory / f"{split}.prompts.npy")
        if tokens_NT.ndim != 2 or tokens_NT.dtype not in TOKEN_DTYPES:
            raise InputError("is no [sequences, tokens] array of token ids", where=f"{directory}/{split}.tokens.npy")
        if not len(tokens_NT) == len(lengths_N) == len(prompts_N):
            raise InputError("tokens, lengths and prompts differ in length", where=f"{directory}/{split}.*.npy")
        return cls(tokens_NT, lengths_N, prompts_N)


def epoch_order(seed: int, epoch: int, num_sequences: int) -> NDArray[np.int64]:
    """The order of the rows in an epoch: a pure function of its arguments, another one for every epoch."""
    return np.random.default_rng([seed, epoch]).permutation(num_sequences)


def _load(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"can't be read: {error}", where=str(path)) from error
    return array
