"""A real, tiny engine: a bigram table, whose logits depend on the last token only."""

from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
import pytest
from numpy.typing import NDArray

from potstill.data.sequences import PackedSequences
from potstill.runtime.engine import EngineFacts


class BigramEngine:
    """An ``Engine`` in numpy; ``calls`` remembers the shapes it was asked for."""

    def __init__(self, table_VV: NDArray[np.float32], name: str = "bigram") -> None:
        self.table_VV = table_VV
        self.calls: list[tuple[int, ...]] = []
        self.prompts: list[tuple[int, ...]] = []
        self._facts = EngineFacts(
            name=name, format="table", engine="numpy", dtype="float32", parameters=table_VV.size,
            file_bytes=table_VV.nbytes, threads=1, vocabulary=table_VV.shape[1],
        )  # fmt: skip

    @property
    def facts(self) -> EngineFacts:
        return self._facts

    def logits(self, tokens_BT: NDArray[np.int64]) -> NDArray[np.float32]:
        self.calls.append(tokens_BT.shape)
        return self.table_VV[tokens_BT]

    def generate(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        self.prompts.append(tuple(prompt))
        tokens = list(prompt)
        for _ in range(num_tokens):
            tokens.append(int(self.table_VV[tokens[-1]].argmax()))
        return tokens[len(prompt) :]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


@pytest.fixture
def bigram() -> Callable[..., BigramEngine]:
    """Make an engine from a seed; equal seeds are equal engines."""

    def make(seed: int, vocabulary: int = 12, scale: float = 2.0, name: str = "bigram") -> BigramEngine:
        table = np.random.default_rng(seed).normal(0, scale, (vocabulary, vocabulary))
        return BigramEngine(table.astype(np.float32), name)

    return make


@pytest.fixture
def from_table() -> Callable[[NDArray[np.float32]], BigramEngine]:
    return BigramEngine


@pytest.fixture
def make_sequences() -> Callable[..., PackedSequences]:
    """Random rows of random lengths, with prompts of up to three tokens."""

    def make(seed: int = 0, num: int = 9, tokens: int = 7, vocabulary: int = 12) -> PackedSequences:
        generator = np.random.default_rng(seed)
        lengths_N = generator.integers(2, tokens + 1, num).astype(np.int32)
        prompts_N = generator.integers(1, 4, num).astype(np.int32)
        tokens_NT = generator.integers(0, vocabulary, (num, tokens)).astype(np.uint16)
        tokens_NT[np.arange(tokens) >= lengths_N[:, None]] = 0
        return PackedSequences(tokens_NT, lengths_N, prompts_N)

    return make
