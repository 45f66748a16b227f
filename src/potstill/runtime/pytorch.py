"""What does PyTorch compute for a model directory? An Engine over transformers, float32 on the CPU.

Weights stored in float16 or as int8 codes are widened to float32 first, so an engine here is the exact reference for
the same weights in another runtime.

Shapes: B rows of a batch, T tokens of a row, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from potstill.core import interrupt
from potstill.core.errors import InputError
from potstill.model.store import load_model
from potstill.model.weights import Weights, load_quantized
from potstill.runtime.engine import EngineFacts

__all__ = ["PytorchEngine"]

_LOGITS_PER_CALL = 32 * 1024 * 1024


class PytorchEngine:
    """A Hugging Face directory, or a quantized one with its weights dequantized.

    ``threads`` sets PyTorch's threads for the whole process while a call runs.

    Raises: InputError: the directory holds no model that transformers can load from safetensors.
    """

    def __init__(self, directory: Path, *, threads: int) -> None:
        weights = Weights(directory)
        self._threads = threads
        self._model: Any = load_quantized(directory) if weights.quantized else load_model(directory)
        self._facts = EngineFacts(
            name=directory.name,
            format="safetensors",
            engine="pytorch",
            dtype=weights.coded_dtype or _dtype_of(weights),
            parameters=weights.num_parameters(),
            file_bytes=weights.num_bytes(),
            threads=threads,
            vocabulary=int(self._model.config.vocab_size),
        )

    @classmethod
    def of(cls, model: Any, facts: EngineFacts) -> Self:  # noqa: ANN401 - a transformers model, whose package is untyped
        """An engine over a model that is loaded already."""
        engine = cls.__new__(cls)
        engine._model, engine._facts, engine._threads = model, facts, facts.threads  # noqa: SLF001 - its own
        return engine

    @property
    def facts(self) -> EngineFacts:
        """What is loaded."""
        return self._facts

    def logits(self, tokens_BT: NDArray[np.int64]) -> NDArray[np.float32]:
        """Next-token logits [B, T, V]; as many rows at a time as keep the logits of a call below 128 MiB."""
        rows, length = tokens_BT.shape
        self._require_known(tokens_BT)
        logits_BTV = np.empty((rows, length, self.facts.vocabulary), dtype=np.float32)
        at_once = max(1, _LOGITS_PER_CALL // max(length * self.facts.vocabulary, 1))
        with torch.inference_mode(), _Threads(self._threads):
            for start in range(0, rows if length else 0, at_once):
                interrupt.check()
                part_BT = torch.from_numpy(np.ascontiguousarray(tokens_BT[start : start + at_once], dtype=np.int64))
                output = self._model(input_ids=part_BT, use_cache=False)
                logits_BTV[start : start + at_once] = output.logits.float().numpy()
        return logits_BTV

    def generate(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """The next tokens by greedy decoding; the first of equally likely ones; never stops early."""
        self._require_known(np.asarray(prompt, dtype=np.int64))
        if not len(prompt):
            raise InputError("an empty prompt can't be continued", where=self.facts.name)
        tokens_BT = torch.tensor([list(prompt)], dtype=torch.int64)
        continuation: list[int] = []
        cache = None
        with torch.inference_mode(), _Threads(self._threads):
            while len(continuation) < num_tokens:
                interrupt.check()
                output = self._model(input_ids=tokens_BT, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache = output.past_key_values
                tokens_BT = output.logits[:, -1].argmax(-1, keepdim=True)
                continuation.append(int(tokens_BT))
        return continuation

    def close(self) -> None:
        """Let the model go."""
        self._model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require_known(self, tokens: NDArray[np.int64]) -> None:
        if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.facts.vocabulary:
            raise InputError(
                f"token ids reach from {tokens.min()} to {tokens.max()}, the vocabulary has {self.facts.vocabulary:,}",
                where=self.facts.name,
            )


class _Threads:
    """PyTorch's number of threads for a block, put back afterwards."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        torch.set_num_threads(self._number)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._before)


def _dtype_of(weights: Weights) -> str:
    """The dtype of the largest tensor of the files."""
    largest = max(weights.names, key=lambda name: int(np.prod(weights.shape(name))))
    return str(weights.read(largest).dtype).removeprefix("torch.")
