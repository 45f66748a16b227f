"""How does llama.cpp cut texts by the tokenizer of a GGUF file? Asked without loading the weights."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from potstill.core.errors import BugError, InputError
from potstill.runtime.llama_abi import Library, load_library

__all__ = ["cut", "cut_all"]


def cut(library: Library, vocab: Any, text: str) -> list[int]:  # noqa: ANN401 - a C pointer
    """Token ids of a text as llama.cpp cuts it: nothing added, names of special tokens taken as plain text."""
    content = text.encode()
    tokens_N = np.empty(len(content) + 8, dtype=np.int32)
    count = library.llama_tokenize(vocab, content, len(content), tokens_N.ctypes.data, len(tokens_N), False, False)
    if count < 0:
        raise BugError(f"llama.cpp wants room for {-count} tokens of {len(content)} bytes", where="llama_tokenize")
    return [int(token) for token in tokens_N[:count]]


def cut_all(path: Path, texts: Iterable[str]) -> list[list[int]]:
    """``cut`` for each text, by the vocabulary of a file that was just written.

    Raises: InputError: llama.cpp can't load the vocabulary.
    """
    library = load_library()
    params = library.llama_model_default_params()
    params.vocab_only = True
    library.forget()
    model = library.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise InputError(f"llama.cpp can't load its vocabulary: {library.first_complaint()}", where=str(path))
    try:
        vocab = library.llama_model_get_vocab(model)
        return [cut(library, vocab, text) for text in texts]
    finally:
        library.llama_model_free(model)
