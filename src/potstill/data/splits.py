"""Which text is learnt, which is watched while learning, and which is kept for the end?

Each sentence is kept once, where it stands first; then whole paragraphs go to a side by the hash of their words. So no
sentence stands on two sides, and neither order nor file names move a paragraph.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from potstill.data.passages import Passage
from potstill.data.sentences import normal_space, split_sentences

__all__ = ["SIDES", "Paragraph", "distinct_paragraphs", "split_by_hash"]

SIDES = ("train", "validation", "test")
_MOST_SENTENCES = 12  # a longer paragraph is cut, so that a text without blank lines still has many
_LARGEST_HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Paragraph:
    """Sentences that stand together, or one answer; ``position`` in [0, 1) is drawn from the hash of the words."""

    sentences: tuple[str, ...]
    prompt: str | None
    position: float

    @property
    def num_characters(self) -> int:
        return sum(map(len, self.sentences)) + len(self.prompt or "")


def distinct_paragraphs(passages: Iterable[Passage]) -> tuple[list[Paragraph], int]:
    """Paragraphs without any sentence that stood before, ordered by hash, and how many sentences were repetitions.

    The order is a shuffle that depends on the words alone.
    """
    seen: set[bytes] = set()
    num_repeated = 0
    paragraphs: list[Paragraph] = []
    for passage in passages:
        for sentences in _pieces(passage):
            kept = []
            for sentence in sentences:
                key = _digest((passage.prompt or "") + "\0" + sentence)
                if key in seen:
                    num_repeated += 1
                    continue
                seen.add(key)
                kept.append(sentence)
            if kept:
                words = " ".join(kept) if passage.prompt is None else normal_space(passage.prompt)
                position = int.from_bytes(_digest(words)[:8], "big") / 2**64
                paragraphs.append(Paragraph(tuple(kept), passage.prompt, position))
    paragraphs.sort(key=lambda paragraph: (paragraph.position, paragraph.sentences))
    return paragraphs, num_repeated


def split_by_hash(paragraphs: Iterable[Paragraph], shares: Mapping[str, float]) -> dict[str, list[Paragraph]]:
    """Each paragraph to the side whose interval of [0, 1) its hash falls into; what ``shares`` leaves goes to train."""
    sides: dict[str, list[Paragraph]] = {side: [] for side in SIDES}
    test_until = shares["test"]
    validation_until = test_until + shares["validation"]
    for paragraph in paragraphs:
        if paragraph.position < test_until:
            sides["test"].append(paragraph)
        elif paragraph.position < validation_until:
            sides["validation"].append(paragraph)
        else:
            sides["train"].append(paragraph)
    return sides


def held_out_share(num_rows: int, tokens_per_row: int, num_characters: int) -> float:
    """The share of the text that holds about ``num_rows`` rows, with some to spare; at most a tenth."""
    return min(_LARGEST_HELD_OUT_SHARE, num_rows * tokens_per_row * _CHARACTERS_PER_TOKEN / max(num_characters, 1))


_CHARACTERS_PER_TOKEN = 5.0  # of English in a byte-level BPE, rather too many than too few


def _pieces(passage: Passage) -> list[list[str]]:
    if passage.prompt is not None:
        return [[passage.text]]
    sentences = split_sentences(passage.text)
    return [sentences[first : first + _MOST_SENTENCES] for first in range(0, len(sentences), _MOST_SENTENCES)]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]
