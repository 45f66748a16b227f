"""The one interface through which every model and every file is scored, timed and asked to continue a text.

Shapes: B rows of a batch, T tokens of a row, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["Engine", "EngineFacts"]


@dataclass(frozen=True)
class EngineFacts:
    """What an engine says of itself.

    ``format`` is that of the file ("safetensors", "gguf"); ``engine`` the runtime ("pytorch", "llama.cpp");
    ``dtype`` what the weights are stored in ("float32", "float16", "bfloat16", "int8", "int4", "q3_k", "q2_k");
    ``file_bytes`` the size of the weights' files on disk.
    """

    name: str
    format: str
    engine: str
    dtype: str
    parameters: int
    file_bytes: int
    threads: int
    vocabulary: int


class Engine(Protocol):
    """A loaded model in some runtime. A context manager: leaving it frees the model."""

    @property
    def facts(self) -> EngineFacts: ...

    def logits(self, tokens_BT: NDArray[np.int64]) -> NDArray[np.float32]:
        """Next-token logits [B, T, V] of rows that each start from an empty context.

        Causal: padding to the right changes nothing before it.
        """
        ...

    def generate(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """The next tokens by greedy decoding with a key-value cache; never stops early."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...
