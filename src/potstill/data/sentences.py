"""Where does a sentence end? Plain rules for English: a full stop, unless it belongs to an abbreviation or a number."""

import re

__all__ = ["normal_space", "split_sentences"]

_END = re.compile(r"[.!?]+[\"'\u201d\u2019)\]]*\s+(?=[\"'\u201c\u2018(\[]*[A-Z0-9])")
_OPENING = "([\"'\u201c\u2018"
_ABBREVIATIONS = frozenset(
    re.findall(
        r"\S+",
        """e.g i.e cf vs viz al resp approx ca incl excl fig figs eq eqs sec ch no nos vol pp p ed eds dr mr mrs ms prof
        st jr sr inc ltd co corp dept est jan feb mar apr jun jul aug sep sept oct nov dec u.s u.k a.m p.m w.r.t a.k.a
        ref refs def thm lem prop""",
    )
)
_SPACE = re.compile(r"\s+")


def normal_space(text: str) -> str:
    """The text with every run of white space turned into one space, none at the ends."""
    return _SPACE.sub(" ", text).strip()


def split_sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph, in order; joined by single spaces they give its words again.

    Knows no grammar: a full stop ends a sentence if white space and a capital letter or a digit follow, and what
    stands before it is neither a known abbreviation nor an initial.
    """
    text = normal_space(paragraph)
    sentences: list[str] = []
    start = 0
    for match in _END.finditer(text):
        if not _is_abbreviation(text, start, match.start()):
            sentences.append(text[start : match.end()].rstrip())
            start = match.end()
    if start < len(text):
        sentences.append(text[start:])
    return sentences


def _is_abbreviation(text: str, start: int, stop: int) -> bool:
    """Whether the word that ends at ``stop``, where a full stop stands, is an abbreviation or an initial."""
    if text[stop] != ".":
        return False
    before = max(start, text.rfind(" ", start, stop) + 1)
    word = text[before:stop].lstrip(_OPENING)
    return word.lower() in _ABBREVIATIONS or (len(word) == 1 and word.isupper() and word != "I")
