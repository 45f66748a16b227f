"""Would llama.cpp stop the whole process over this file? It aborts on some damaged headers instead of refusing them.

Each check stands for an assertion that flipping bytes of real files was seen to run into.
"""

import math
from collections import Counter
from pathlib import Path

from potstill.core.errors import InputError
from potstill.runtime.llama_abi import GgufParams, Library

__all__ = ["require_loadable"]

_UINT32, _FLOAT32, _STRING, _ARRAY = 4, 6, 8, 9
_MOST_BLOCKS = 512
_FUSED = frozenset({"gpt2", "gptneox", "phi3"})
"""Families whose queries, keys and values are one tensor, cut by what the header says: heads as wide as the model."""


def require_loadable(library: Library, path: Path) -> None:
    """Read the header through llama.cpp's own reader and check what its loader would abort on.

    Raises: InputError: naming the field.
    """
    library.forget()
    header = library.gguf_init_from_file(str(path).encode(), GgufParams(no_alloc=True, ctx=None))
    if not header:
        raise _damaged(path, library.first_complaint())
    try:
        _check(_Header(library, header), path)
    finally:
        library.gguf_free(header)


class _Header:
    """Values of a header by key; None where the key is missing or of another type."""

    def __init__(self, library: Library, pointer: int) -> None:
        self._library = library
        self._pointer = pointer

    def _find(self, key: str, type_: int) -> int:
        position = int(self._library.gguf_find_key(self._pointer, key.encode()))
        if position >= 0 and self._library.gguf_get_kv_type(self._pointer, position) == type_:
            return position
        return -1

    def text(self, key: str) -> bytes | None:
        position = self._find(key, _STRING)
        return None if position < 0 else bytes(self._library.gguf_get_val_str(self._pointer, position))

    def integer(self, key: str) -> int | None:
        position = self._find(key, _UINT32)
        return None if position < 0 else int(self._library.gguf_get_val_u32(self._pointer, position))

    def number(self, key: str) -> float | None:
        position = self._find(key, _FLOAT32)
        return None if position < 0 else float(self._library.gguf_get_val_f32(self._pointer, position))

    def texts(self, key: str) -> list[bytes]:
        position = self._find(key, _ARRAY)
        if position < 0 or self._library.gguf_get_arr_type(self._pointer, position) != _STRING:
            return []
        count = int(self._library.gguf_get_arr_n(self._pointer, position))
        return [bytes(self._library.gguf_get_arr_str(self._pointer, position, index)) for index in range(count)]


def _check(header: _Header, path: Path) -> None:
    family = (header.text("general.architecture") or b"").decode(errors="replace")
    blocks = header.integer(f"{family}.block_count")
    if blocks is not None and not 0 < blocks <= _MOST_BLOCKS:
        raise _damaged(path, f"{family}.block_count is {blocks}")
    for kind in ("layer_norm_rms_epsilon", "layer_norm_epsilon"):
        epsilon = header.number(f"{family}.attention.{kind}")
        if epsilon is not None and not (epsilon >= 0 and math.isfinite(epsilon)):
            raise _damaged(path, f"{family}.attention.{kind} is {epsilon}")
    _check_heads(header, family, path)
    repeated = [text for text, times in Counter(header.texts("tokenizer.ggml.tokens")).items() if times > 1]
    if repeated:
        raise _damaged(path, f"the token {repeated[0].decode(errors='replace')!r} stands in its vocabulary twice")


def _check_heads(header: _Header, family: str, path: Path) -> None:
    """Numbers and widths of heads must fit each other; llama.cpp compares them with tensors in some families only."""
    heads = header.integer(f"{family}.attention.head_count")
    width = header.integer(f"{family}.embedding_length")
    if heads is None or width is None:
        return
    if not 0 < heads <= width:
        raise _damaged(path, f"{family}.attention.head_count is {heads}, for a width of {width}")
    sharing = header.integer(f"{family}.attention.head_count_kv")
    if sharing is not None and (not 0 < sharing <= heads or heads % sharing):
        raise _damaged(path, f"{family}.attention.head_count_kv is {sharing}, for {heads} heads")
    lengths = {kind: header.integer(f"{family}.attention.{kind}_length") for kind in ("key", "value")}
    for kind, length in lengths.items():
        if length is not None and (length <= 0 or (family in _FUSED and heads * length != width)):
            raise _damaged(path, f"{family}.attention.{kind}_length is {length}, for {heads} heads in {width} columns")
    rotated = header.integer(f"{family}.rope.dimension_count")
    if rotated is not None and (rotated % 2 or rotated > (lengths["key"] or width // heads)):
        raise _damaged(path, f"{family}.rope.dimension_count is {rotated}, more than a head has, or odd")


def _damaged(path: Path, what: str) -> InputError:
    return InputError(
        f"llama.cpp can't load it: {what}",
        where=str(path),
        next_step="export the model again; if it is another program's file, check that it is whole",
    )
