"""What a decoder expects a teacher to draw, from the text alone: a tiny language model in exact integers.

Draws cost as many bits as they surprise the decoder. It knows the text, so it can be told once, in some ten thousand
bytes a store, what usually follows what: a log-bilinear model over the last few tokens. Everything is arithmetic on
whole numbers, done by float32 products below 2^24 and float64 ones below 2^53, which are exact in any order; so every
machine gets the same frequencies, as entropy coding demands.

    hidden = clip(floor(sum_i E[item_i] M_i / 2^shift))        score = floor(hidden . E[j] * scale) + bias[j]

The score of item j (``items``) is log2 of its frequency in 1/256 bits, and 2^x is taken as linear between whole
powers, which is what the bits of a float32 say when they are read as a number, and rounded down.

Shapes: V vocabulary, I items, C tokens of context, R width, n positions.
Source: the log-bilinear model of Mnih & Hinton 2007, with a clipped hidden layer.
"""

import hashlib
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from potstill.core.durable import replacing
from potstill.core.errors import BugError, InputError
from potstill.labels.items import Expected, Items
from potstill.labels.shard import AGAIN
from potstill.labels.stacks import PRECISION

__all__ = ["CONTEXT_TOKENS", "PRIOR", "Prior", "contexts_of", "read_prior", "write_prior"]

PRIOR = "prior.labels"
CONTEXT_TOKENS = 4
NUM_LEVELS = 256
STEPS_PER_BIT = 256
MOST_HIDDEN = 127
MOST_WIDTH = 64
"""At which 127 x 127 x 15 x the width, the largest sum of a product, is below 2^24 still."""

_MAGIC = b"PotPri\x00\x02"
_STEP_BITS = 8
_MANTISSA_BITS = 23
_EXPONENT_OF_ONE = 127
_SUM_BITS = 31
_ROWS_AT_ONCE = 32


@dataclass(frozen=True)
class Prior:
    """The model.

    ``scale_m`` / 2^``scale_e`` is the score's scale; ``scale_m`` is below 16.

    Shapes: embeddings_IR int8; mixers_CRR int8; bias_I int16, in 1/256 bits; levels_L and ranks_L uint16,
    frequencies of the levels of the true token's log-probability and of the rank of the likeliest token, each at least
    1, 2^16 together; weights_L likewise of the levels of importance weights, None where draws carry none.
    """

    items: Items
    embeddings_IR: NDArray[np.int8]
    mixers_CRR: NDArray[np.int8]
    shift: int
    scale_m: int
    scale_e: int
    bias_I: NDArray[np.int16]
    levels_L: NDArray[np.uint16]
    ranks_L: NDArray[np.uint16]
    weights_L: NDArray[np.uint16] | None = None

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.items.vocabulary

    def expected(self, contexts_nC: NDArray[np.int64]) -> Expected:
        """Cumulative frequencies of all items after each context: from 0 to 2^28, every item's at least 1.

        Shapes: contexts_nC ids, the last token first, ``vocabulary`` for none.
        """
        num_items = len(self.bias_I)
        gathered_nD = self._table[self._item_of_token[contexts_nC]].reshape(len(contexts_nC), -1)
        mixed_nR = gathered_nD @ self._mixers
        hidden_nR = np.clip(np.floor(mixed_nR * np.float32(2.0**-self.shift)), -MOST_HIDDEN, MOST_HIDDEN)
        scores_nI = hidden_nR @ self._scaled
        cdf_nI1 = np.zeros((len(contexts_nC), num_items + 1), dtype=np.int32)
        for first in range(0, len(contexts_nC), _ROWS_AT_ONCE):
            rows = slice(first, first + _ROWS_AT_ONCE)
            self._accumulate(scores_nI[rows], cdf_nI1[rows, 1:])
        cdf_nI1[:, -1] = 1 << PRECISION
        return Expected(cdf_nI1, self.items)

    def _accumulate(self, scores_nI: NDArray[np.float32], cdf_nI: NDArray[np.int32]) -> None:
        """Scores, which are used up, to cumulative frequencies; few rows at a time stay in the processor's cache."""
        np.floor(scores_nI, out=scores_nI)
        scores_nI += self.bias_I
        scores_nI -= scores_nI.max(axis=1, keepdims=True) - np.float32(self._most_bits * STEPS_PER_BIT)
        np.maximum(scores_nI, 0, out=scores_nI)
        bits_nI = scores_nI.astype(np.int32)
        bits_nI += _EXPONENT_OF_ONE * STEPS_PER_BIT
        bits_nI <<= _MANTISSA_BITS - _STEP_BITS
        sums_nI = np.cumsum(bits_nI.view(np.float32).astype(np.int32), axis=1, dtype=np.int32).astype(np.float64)
        sums_nI *= ((1 << PRECISION) - len(self.bias_I)) / sums_nI[:, -1:]
        cdf_nI[:] = sums_nI
        cdf_nI += np.arange(1, len(self.bias_I) + 1, dtype=np.int32)

    @property
    def _most_bits(self) -> int:
        """How much rarer than the likeliest an item can be: as much as lets all together stay below 2^31."""
        return _SUM_BITS - 1 - len(self.bias_I).bit_length()

    @cached_property
    def _item_of_token(self) -> NDArray[np.int64]:
        """Each token's item, and the row of zeros for no token."""
        return np.append(self.items.item_V.astype(np.int64), len(self.bias_I))

    @cached_property
    def _table(self) -> NDArray[np.float32]:
        """The embeddings as floats, and a row of zeros for no token: [I + 1, R]."""
        return np.pad(self.embeddings_IR.astype(np.float32), ((0, 1), (0, 0)))

    @cached_property
    def _scaled(self) -> NDArray[np.float32]:
        """What makes scores of a hidden layer: whole numbers below 2^11, times a power of two: [R, I]."""
        scaled_IR = self.embeddings_IR.astype(np.float32) * np.float32(self.scale_m * 2.0**-self.scale_e)
        return np.ascontiguousarray(scaled_IR.T)

    @cached_property
    def _mixers(self) -> NDArray[np.float32]:
        """The mixers as floats, one below the other: [C x R, R]."""
        places, width, _ = self.mixers_CRR.shape
        return self.mixers_CRR.reshape(places * width, width).astype(np.float32)

    @cached_property
    def level_cdf(self) -> NDArray[np.int64]:
        """Cumulative frequencies of the levels, from 0 to 2^16."""
        return _cumulative(self.levels_L)

    @cached_property
    def rank_cdf(self) -> NDArray[np.int64]:
        """Cumulative frequencies of the ranks, from 0 to 2^16."""
        return _cumulative(self.ranks_L)

    @cached_property
    def weight_cdf(self) -> NDArray[np.int64]:
        """Cumulative frequencies of the levels of importance weights, from 0 to 2^16.

        Raises: BugError: these draws carry none.
        """
        if self.weights_L is None:
            raise BugError("this prior is one of draws without importance weights")
        return _cumulative(self.weights_L)


def _cumulative(frequencies_L: NDArray[np.uint16]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(frequencies_L.astype(np.int64))])


def contexts_of(tokens_T: NDArray[np.int64], positions_P: NDArray[np.int64], vocabulary: int) -> NDArray[np.int64]:
    """The tokens up to each position, the last first; ``vocabulary`` stands for what would be before the row.

    Returns: int64 [P, C].
    """
    before_PC = positions_P[:, None] - np.arange(CONTEXT_TOKENS)
    return np.where(before_PC >= 0, tokens_T[np.maximum(before_PC, 0)], vocabulary)


def write_prior(path: Path, prior: Prior) -> str:
    """Write a prior durably; returns its sha256."""
    arrays: dict[str, NDArray[Any]] = {
        "items": prior.items.item_V,
        "shares": prior.items.share_V,
        "embeddings": prior.embeddings_IR,
        "mixers": prior.mixers_CRR,
        "bias": prior.bias_I,
        "levels": prior.levels_L,
        "ranks": prior.ranks_L,
        **({} if prior.weights_L is None else {"weights": prior.weights_L}),
        "scale": np.array([prior.shift, prior.scale_m, prior.scale_e], dtype=np.int32),
    }
    packed = zlib.compress(save(arrays), 9)
    content = _MAGIC + packed
    digest = hashlib.sha256(content).digest()
    with replacing(path) as temporary:
        temporary.write_bytes(content + digest)
    return digest.hex()


def read_prior(path: Path) -> tuple[Prior, str]:
    """Read what ``write_prior`` wrote, and its sha256.

    Raises: InputError: it is missing, damaged, or none.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError("is missing from the label store", where=str(path), next_step=AGAIN) from error
    digest = hashlib.sha256(content[:-32])
    if not content.startswith(_MAGIC) or digest.digest() != content[-32:]:
        raise InputError("is damaged or cut short: its checksum doesn't hold", where=str(path), next_step=AGAIN)
    try:
        arrays = load(zlib.decompress(content[len(_MAGIC) : -32]))
        shift, scale_m, scale_e = (int(number) for number in arrays["scale"])
        bias_I, levels_L, ranks_L = (arrays[name] for name in ("bias", "levels", "ranks"))
        items = Items(arrays["items"], arrays["shares"])
        tables = (arrays["embeddings"], arrays["mixers"], shift, scale_m, scale_e, bias_I, levels_L, ranks_L)
        prior = Prior(items, *tables, weights_L=arrays.get("weights"))
    except (KeyError, ValueError, SafetensorError, zlib.error) as error:
        raise InputError(f"is no prior of this version: {error}", where=str(path), next_step=AGAIN) from error
    if not items.whole or items.num_items != len(bias_I):
        raise InputError("is no prior: its items don't fit together", where=str(path), next_step=AGAIN)
    return prior, digest.hexdigest()
