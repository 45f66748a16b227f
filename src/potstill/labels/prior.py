"""What a decoder expects a teacher to draw, from the text alone: a tiny language model in exact integers.

Draws cost as many bits as they surprise the decoder. It knows the text, so it can be told once, in some ten thousand
bytes a store, what usually follows what: a log-bilinear model over the last few tokens. Everything is arithmetic on
whole numbers, done by float32 products below 2^24 and float64 ones below 2^53, which are exact in any order; so every
machine gets the same frequencies, as entropy coding demands.

    hidden = clip(floor(sum_i E[token_i] M_i / 2^shift))        score = floor(hidden . E[v] * scale) + bias[v]

The score is log2 of the frequency in 1/256 bits, and 2^x is taken as linear between whole powers.

Shapes: V vocabulary, C tokens of context, R width, n positions.
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
from potstill.labels.shard import AGAIN
from potstill.labels.stacks import PRECISION

__all__ = ["CONTEXT_TOKENS", "PRIOR", "Prior", "contexts_of", "read_prior", "write_prior"]

PRIOR = "prior.labels"
CONTEXT_TOKENS = 4
NUM_LEVELS = 256
STEPS_PER_BIT = 256
MOST_HIDDEN = 127

_MAGIC = b"PotPri\x00\x01"
_MOST_BITS = 22


@dataclass(frozen=True)
class Prior:
    """The model.

    ``scale_m`` / 2^``scale_e`` is the score's scale; ``scale_m`` is below 16.

    Shapes: embeddings_VR int8; mixers_CRR int8; bias_V int16, in 1/256 bits; levels_L and ranks_L uint16,
    frequencies of the levels of the true token's log-probability and of the rank of the likeliest token, each at least
    1, 2^16 together; weights_L likewise of the levels of importance weights, None where draws carry none.
    """

    embeddings_VR: NDArray[np.int8]
    mixers_CRR: NDArray[np.int8]
    shift: int
    scale_m: int
    scale_e: int
    bias_V: NDArray[np.int16]
    levels_L: NDArray[np.uint16]
    ranks_L: NDArray[np.uint16]
    weights_L: NDArray[np.uint16] | None = None

    @property
    def vocabulary(self) -> int:
        """V."""
        return len(self.bias_V)

    def cdf(self, contexts_nC: NDArray[np.int64]) -> NDArray[np.int64]:
        """Cumulative frequencies of all tokens after each context: from 0 to 2^28, every token's at least 1.

        Shapes: contexts_nC ids, the last token first, ``vocabulary`` for none.
        Returns: int64 [n, V + 1].
        """
        vocabulary = self.vocabulary
        weights_nV = _POWERS[(-self._scores(contexts_nC)).astype(np.int32)]
        sums_nV = np.cumsum(weights_nV, axis=1)
        shares_n1 = (2**PRECISION - vocabulary) / sums_nV[:, -1:]
        cdf_nV1 = np.zeros((len(contexts_nC), vocabulary + 1), dtype=np.int64)
        np.add(np.floor(sums_nV * shares_n1), np.arange(1, vocabulary + 1), out=cdf_nV1[:, 1:], casting="unsafe")
        cdf_nV1[:, -1] = 2**PRECISION
        return cdf_nV1

    def _scores(self, contexts_nC: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores relative to each context's highest, in 1/256 bits: whole numbers from -22 x 256 to 0."""
        gathered_nD = self._table[contexts_nC].reshape(len(contexts_nC), -1)
        mixed_nR = gathered_nD @ self._mixers
        hidden_nR = np.clip(np.floor(mixed_nR * np.float32(2.0**-self.shift)), -MOST_HIDDEN, MOST_HIDDEN)
        scores_nV: NDArray[np.float32] = hidden_nR @ self._table[:-1].T
        scores_nV *= np.float32(self.scale_m * 2.0**-self.scale_e)
        np.floor(scores_nV, out=scores_nV)
        scores_nV += self.bias_V
        scores_nV -= scores_nV.max(axis=1, keepdims=True)
        np.maximum(scores_nV, -_MOST_BITS * STEPS_PER_BIT, out=scores_nV)
        return scores_nV

    @cached_property
    def _table(self) -> NDArray[np.float32]:
        """The embeddings as floats, and a row of zeros for no token: [V + 1, R]."""
        return np.pad(self.embeddings_VR.astype(np.float32), ((0, 1), (0, 0)))

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


def _powers() -> NDArray[np.int64]:
    """2^(30 - x / 256) for x from 0 to 22 x 256, linear between whole powers."""
    bits, steps = np.divmod(-np.arange(_MOST_BITS * STEPS_PER_BIT + 1), STEPS_PER_BIT)
    powers: NDArray[np.int64] = (STEPS_PER_BIT + steps).astype(np.int64) << (_MOST_BITS + bits).astype(np.int64)
    return powers


_POWERS = _powers()


def contexts_of(tokens_T: NDArray[np.int64], positions_P: NDArray[np.int64], vocabulary: int) -> NDArray[np.int64]:
    """The tokens up to each position, the last first; ``vocabulary`` stands for what would be before the row.

    Returns: int64 [P, C].
    """
    before_PC = positions_P[:, None] - np.arange(CONTEXT_TOKENS)
    return np.where(before_PC >= 0, tokens_T[np.maximum(before_PC, 0)], vocabulary)


def write_prior(path: Path, prior: Prior) -> str:
    """Write a prior durably; returns its sha256."""
    arrays: dict[str, NDArray[Any]] = {
        "embeddings": prior.embeddings_VR,
        "mixers": prior.mixers_CRR,
        "bias": prior.bias_V,
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
        bias_V, levels_L, ranks_L = (arrays[name] for name in ("bias", "levels", "ranks"))
        tables = (arrays["embeddings"], arrays["mixers"], shift, scale_m, scale_e, bias_V, levels_L, ranks_L)
        prior = Prior(*tables, weights_L=arrays.get("weights"))
    except (KeyError, ValueError, SafetensorError, zlib.error) as error:
        raise InputError(f"is no prior of this version: {error}", where=str(path), next_step=AGAIN) from error
    return prior, digest.hexdigest()
