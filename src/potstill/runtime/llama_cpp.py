"""What does llama.cpp itself compute for a GGUF file? An Engine over its C interface.

The key-value cache is float32 and flash attention is off, so that the file's weights are the only approximation; on
int8 files llama.cpp also rounds activations to int8, 32 at a time, as it does for every user, and in families with a
GELU it looks that up in a table of float16.

Shapes: B rows of a batch, T tokens of a row, V vocabulary, N tokens of one call to llama.cpp.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from potstill.core import interrupt
from potstill.core.errors import BugError, InputError, ResourceError
from potstill.runtime.engine import EngineFacts
from potstill.runtime.gguf_header import require_loadable
from potstill.runtime.llama_abi import Batch, load_library
from potstill.runtime.llama_vocab import cut

__all__ = ["LlamaCppEngine"]

_MAGIC = b"GGUF"
_TOKENS_PER_CALL = 512
_MOST_ROWS = 64
_F32 = 0
_FLASH_ATTENTION_OFF = 0
_POSITIONS_IN_A_TABLE = frozenset({"gpt2"})
"""Families in which llama.cpp ends the process at a position that the model hasn't learned."""
_DTYPES = MappingProxyType({0: "float32", 1: "float16", 2: "int4", 7: "int8", 10: "q2_k", 11: "q3_k", 32: "bfloat16"})


class LlamaCppEngine:
    """A GGUF file, loaded by the llama.cpp that ships inside ``xllamacpp``.

    Raises: InputError: no GGUF file, a truncated or damaged one, or a model that llama.cpp doesn't know.
    ResourceError: llama.cpp isn't installed, or isn't the release these bindings were checked against.
    """

    def __init__(self, path: Path, *, threads: int) -> None:
        _require_gguf(path)
        self._library = load_library()
        require_loadable(self._library, path)
        self._threads = threads
        self._context: _Context | None = None
        self._model = self._load(path)
        self._vocab = self._library.llama_model_get_vocab(self._model)
        self._facts = EngineFacts(
            name=path.stem,
            format="gguf",
            engine="llama.cpp",
            dtype=self._dtype(),
            parameters=int(self._library.llama_model_n_params(self._model)),
            file_bytes=path.stat().st_size,
            threads=threads,
            vocabulary=int(self._library.llama_vocab_n_tokens(self._vocab)),
        )

    @property
    def facts(self) -> EngineFacts:
        """What is loaded."""
        return self._facts

    def logits(self, tokens_BT: NDArray[np.int64]) -> NDArray[np.float32]:
        """Next-token logits [B, T, V]; rows go through llama.cpp several at a time, as sequences of their own."""
        self._require_known(tokens_BT)
        rows, length = tokens_BT.shape
        logits_BTV = np.empty((rows, length, self.facts.vocabulary), dtype=np.float32)
        at_once = max(1, min(rows, _TOKENS_PER_CALL // max(length, 1), _MOST_ROWS))
        for start in range(0, rows if length else 0, at_once):
            interrupt.check()
            part_BT = tokens_BT[start : start + at_once]
            context = self._context_for(length, at_once)
            context.clear()
            sequences_BT = np.broadcast_to(np.arange(len(part_BT))[:, None], part_BT.shape)
            positions_BT = np.broadcast_to(np.arange(length), part_BT.shape)
            context.decode(part_BT.ravel(), positions_BT.ravel(), sequences_BT.ravel(), every=True)
            logits_BTV[start : start + at_once] = context.logits(part_BT.size).reshape(*part_BT.shape, -1)
        return logits_BTV

    def generate(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """The next tokens by greedy decoding; the first of equally likely ones; never stops early."""
        tokens_N = np.asarray(prompt, dtype=np.int64)
        self._require_known(tokens_N)
        if not len(tokens_N):
            raise InputError("an empty prompt can't be continued", where=self.facts.name)
        context = self._context_for(len(tokens_N) + num_tokens, 1)
        context.clear()
        continuation: list[int] = []
        position = 0
        while len(continuation) < num_tokens:
            interrupt.check()
            positions_N = np.arange(position, position + len(tokens_N))
            context.decode(tokens_N, positions_N, np.zeros_like(positions_N), every=False)
            position += len(tokens_N)
            continuation.append(int(context.logits(1)[0].argmax()))
            tokens_N = np.asarray(continuation[-1:], dtype=np.int64)
        return continuation

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text as llama.cpp cuts it: nothing added, names of special tokens taken as plain text."""
        return cut(self._library, self._vocab, text)

    @property
    def beginning_id(self) -> int | None:
        """The token that a text begins with: the beginning-of-text token, or the end-of-text one if there is none."""
        beginning = self._library.llama_vocab_bos(self._vocab)
        token = beginning if beginning >= 0 else self._library.llama_vocab_eos(self._vocab)
        return int(token) if token >= 0 else None

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids, special ones spelled out; bytes that are no UTF-8 become replacement characters."""
        tokens_N = np.asarray(tokens, dtype=np.int32)
        self._require_known(tokens_N.astype(np.int64))
        arguments = (self._vocab, tokens_N.ctypes.data, len(tokens_N))
        size = -min(self._library.llama_detokenize(*arguments, None, 0, False, True), 0)
        room = ctypes.create_string_buffer(size + 1)
        count = self._library.llama_detokenize(*arguments, ctypes.addressof(room), size, False, True)
        return room.raw[:count].decode(errors="replace")

    def close(self) -> None:
        """Free the model; the engine is of no use afterwards."""
        if self._context is not None:
            self._context.close()
            self._context = None
        if self._model:
            self._library.llama_model_free(self._model)
            self._model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self, path: Path) -> Any:  # noqa: ANN401 - a C pointer
        params = self._library.llama_model_default_params()
        params.n_gpu_layers = 0
        params.check_tensors = True
        self._library.forget()
        model = self._library.llama_model_load_from_file(str(path).encode(), params)
        if not model:
            raise InputError(
                f"llama.cpp can't load it: {self._library.first_complaint()}",
                where=str(path),
                next_step="export the model again; if it is another program's file, check that it is whole",
            )
        return model

    def _said(self, key: bytes) -> str:
        """What the header says under a key; empty where it says nothing."""
        buffer = ctypes.create_string_buffer(32)
        length = self._library.llama_model_meta_val_str(self._model, key, buffer, len(buffer))
        return buffer.value.decode() if length > 0 else ""

    def _dtype(self) -> str:
        text = self._said(b"general.file_type")
        return _DTYPES.get(int(text), f"file type {text}") if text.isdigit() else "unknown"

    def _require_known(self, tokens: NDArray[np.int64]) -> None:
        if self._model is None:
            raise BugError("the engine is closed", where=self.facts.name)
        if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.facts.vocabulary:
            raise InputError(
                f"token ids reach from {tokens.min()} to {tokens.max()}, the vocabulary has {self.facts.vocabulary:,}",
                where=self.facts.name,
            )

    def _context_for(self, tokens: int, sequences: int) -> "_Context":
        """The open context if it has rows of this length and enough of them, else a new one in its place."""
        longest = int(self._library.llama_model_n_ctx_train(self._model))
        if tokens > longest and self._said(b"general.architecture") in _POSITIONS_IN_A_TABLE:
            raise InputError(
                f"{tokens:,} tokens in a row are more than its table of {longest:,} positions has",
                where=self.facts.name,
            )
        open_ = self._context
        if open_ is not None and (open_.tokens != tokens or open_.sequences < sequences):
            open_.close()
            self._context = None
        if self._context is None:
            self._context = _Context(self._model, tokens, sequences, self._threads, self.facts.vocabulary)
        return self._context


class _Context:
    """A key-value cache for some sequences of some tokens, and the calls that fill and read it."""

    def __init__(self, model: Any, tokens: int, sequences: int, threads: int, vocabulary: int) -> None:  # noqa: ANN401
        self._library = load_library()
        self.tokens, self.sequences = tokens, sequences
        self._vocabulary = vocabulary
        params = self._library.llama_context_default_params()
        params.n_ctx = tokens * sequences
        params.n_batch = tokens * sequences
        params.n_ubatch = min(tokens * sequences, _TOKENS_PER_CALL)
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = _FLASH_ATTENTION_OFF
        params.type_k = params.type_v = _F32
        self._library.forget()
        self._pointer = self._library.llama_init_from_model(model, params)
        if not self._pointer:
            raise ResourceError(
                f"llama.cpp can't make a context of {sequences} x {tokens} tokens: {self._library.first_complaint()}",
                next_step="score shorter rows, or free memory",
            )
        self._require_as_asked(tokens * sequences, sequences, threads)

    def clear(self) -> None:
        """Forget all sequences."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self._pointer), False)

    def decode(
        self,
        tokens_N: NDArray[np.int64],
        positions_N: NDArray[np.int64],
        sequences_N: NDArray[np.int64],
        *,
        every: bool,
    ) -> None:
        """Run tokens through the model; keep the logits of every one, or of the last only."""
        number = len(tokens_N)
        token, position, sequence = (
            np.ascontiguousarray(values, dtype=np.int32) for values in (tokens_N, positions_N, sequences_N)
        )
        ones = np.ones(number, dtype=np.int32)
        pointers = sequence.ctypes.data + 4 * np.arange(number, dtype=np.uint64)
        wanted = np.ones(number, dtype=np.int8)
        wanted[: 0 if every else -1] = 0
        batch = Batch(
            n_tokens=number,
            token=token.ctypes.data,
            embd=None,
            pos=position.ctypes.data,
            n_seq_id=ones.ctypes.data,
            seq_id=pointers.ctypes.data,
            logits=wanted.ctypes.data,
        )
        self._library.forget()
        status = self._library.llama_decode(self._pointer, batch)
        if status:
            raise BugError(f"llama_decode answers {status}: {self._library.first_complaint()}", where="llama.cpp")

    def logits(self, number: int) -> NDArray[np.float32]:
        """The logits kept by the last ``decode``, in the order of its tokens: a view that the next call overwrites.

        Returns: float32 [number, V].
        """
        pointer = self._library.llama_get_logits(self._pointer)
        return np.ctypeslib.as_array(pointer, shape=(number, self._vocabulary))

    def close(self) -> None:
        """Free the cache."""
        if self._pointer:
            self._library.llama_free(self._pointer)
            self._pointer = None

    def _require_as_asked(self, tokens: int, sequences: int, threads: int) -> None:
        """What was set by our struct must be what the library's own getters say."""
        library, pointer = self._library, self._pointer
        as_asked = (
            library.llama_n_seq_max(pointer) == sequences
            and library.llama_n_threads(pointer) == library.llama_n_threads_batch(pointer) == threads
            and library.llama_n_ctx(pointer) >= tokens
            and library.llama_n_batch(pointer) >= tokens
        )
        if not as_asked:
            self.close()
            raise ResourceError("llama.cpp's context isn't as it was asked for", where=str(library.path))


def _require_gguf(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise InputError(f"can't be read: {error.strerror or error}", where=str(path)) from error
    if magic != _MAGIC:
        raise InputError("is no GGUF file", where=str(path), next_step="name a .gguf file that potstill exported")
