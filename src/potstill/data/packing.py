"""How do sentences become rows of T tokens? Whole consecutive sentences of one paragraph, as many as fit.

Shapes: N rows, T tokens per row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from potstill.core import interrupt
from potstill.data.sequences import PackedSequences
from potstill.data.splits import Paragraph
from potstill.data.tokenizer import TextCoder

__all__ = ["Packed", "pack"]


@dataclass(frozen=True)
class Packed:
    """Rows, and what packing lost: rows under the minimum, and sentences cut at T tokens."""

    rows: PackedSequences
    num_short: int
    num_truncated: int

    @property
    def num_tokens(self) -> int:
        """Tokens that are no padding."""
        return int(self.rows.lengths_N.sum())


@dataclass(frozen=True)
class _Row:
    prompt: list[int]
    text: list[int]
    ends: bool  # nothing of the paragraph follows


def pack(
    paragraphs: Sequence[Paragraph],
    coder: TextCoder,
    *,
    tokens_per_row: int,
    shortest: int,
    most_rows: int | None,
) -> Packed:
    """[beginning] + tokens + [end], cut at ``tokens_per_row``, in the order of ``paragraphs``.

    The end token stands only where the paragraph ends, if it fits. Rows of less than ``shortest`` tokens are left out,
    as are prompts that leave no room for an answer. Stops at ``most_rows``.
    """
    rows: list[list[int]] = []
    prompts: list[int] = []
    num_short = num_truncated = 0
    for first in range(0, len(paragraphs), _PARAGRAPHS_AT_ONCE):
        interrupt.check()
        for row in _encoded(paragraphs[first : first + _PARAGRAPHS_AT_ONCE], coder, tokens_per_row):
            tokens = [coder.beginning_id, *row.prompt, *row.text, *([coder.end_id] if row.ends else [])]
            if len(tokens) < shortest or len(row.prompt) + 2 > tokens_per_row or not row.text:
                num_short += 1
                continue
            num_truncated += len(tokens) - row.ends > tokens_per_row
            rows.append(tokens[:tokens_per_row])
            prompts.append(1 + len(row.prompt))
        if most_rows is not None and len(rows) >= most_rows:
            break
    return Packed(_array(rows[:most_rows], prompts[:most_rows], coder, tokens_per_row), num_short, num_truncated)


_PARAGRAPHS_AT_ONCE = 2_000


def _encoded(paragraphs: Sequence[Paragraph], coder: TextCoder, tokens_per_row: int) -> list[_Row]:
    """The rows of some paragraphs, beginning and end not yet added.

    Sentences are measured one by one, then each row is encoded whole: so its tokens are those of its text, whatever
    the tokenizer does at a sentence's start.
    """
    plain = [paragraph for paragraph in paragraphs if paragraph.prompt is None]
    measured = iter(coder.encode([" " + sentence for paragraph in plain for sentence in paragraph.sentences]))
    texts: list[tuple[str, bool]] = []
    for paragraph in plain:
        groups = _grouped([len(next(measured)) for _ in paragraph.sentences], tokens_per_row - 1)
        for start, stop in groups:
            texts.append((" ".join(paragraph.sentences[start:stop]), stop == len(paragraph.sentences)))
    rows = [
        _Row([], tokens, ends)
        for tokens, (_, ends) in zip(coder.encode([text for text, _ in texts]), texts, strict=True)
    ]
    answers = [paragraph for paragraph in paragraphs if paragraph.prompt is not None]
    asked = coder.encode([f"{paragraph.prompt}\n" for paragraph in answers])
    answered = coder.encode([paragraph.sentences[0] for paragraph in answers])
    rows += [_Row(prompt, answer, ends=True) for prompt, answer in zip(asked, answered, strict=True)]
    return rows


def _grouped(lengths: Sequence[int], capacity: int) -> list[tuple[int, int]]:
    """Consecutive runs, each as long as ``capacity`` allows, at least one item: (start, stop) pairs."""
    groups: list[tuple[int, int]] = []
    start = used = 0
    for index, length in enumerate(lengths):
        if index > start and used + length > capacity:
            groups.append((start, index))
            start, used = index, 0
        used += length
    if start < len(lengths):
        groups.append((start, len(lengths)))
    return groups


def _array(
    rows: Sequence[Sequence[int]], prompts: Sequence[int], coder: TextCoder, tokens_per_row: int
) -> PackedSequences:
    dtype = np.uint16 if coder.vocabulary <= 1 << 16 else np.uint32
    tokens_NT = np.zeros((len(rows), tokens_per_row), dtype=dtype)
    for index, row in enumerate(rows):
        tokens_NT[index, : len(row)] = row
    lengths_N = np.array([len(row) for row in rows], dtype=np.int32)
    return PackedSequences(tokens_NT, lengths_N, np.array(prompts, dtype=np.int32))
