"""Which parts of a docstring are English prose? Everything else is left out: code, tables, lists of parameters, markup.

Handles the three docstring styles (numpy, Google, Sphinx), reStructuredText and Markdown. Pure: text in, text out.
"""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest

from potstill.data.markup import plain_text
from potstill.data.sentences import split_sentences

__all__ = ["prose_paragraphs", "reads_as_prose"]

_UNDERLINE = re.compile(r"([=\-~^\"'#*+.:_`])\1{2,}")
_FENCED = re.compile(r"^[ \t]*(```|~~~|\$\$).*?(?:^[ \t]*\1[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_PROSE_SECTION = re.compile(
    r"(?:notes?|warnings?|important|tips?|hints?|caution|attention|remarks?|details?|description|overview|summary"
    r"|background|motivation|explanation|discussion|algorithm|caveats?|extended summary)",
    re.IGNORECASE,
)
_SECTION = re.compile(r"[A-Za-z][\w ,/()-]{0,40}:")
_PROSE_PREFIX = re.compile(r"(?:note|warning|important|tip|hint|caution|attention)s?\s*:\s+(?=[A-Z])", re.IGNORECASE)
_PROSE_DIRECTIVE = re.compile(r"\.\.\s*(?:note|warning|important|tip|hint|caution|attention|danger)\s*::\s*(.*)")
_FIELD = re.compile(r":[a-zA-Z][\w *,.\[\]|-]*:(?:\s|$)|@\w+")
_LIST_ITEM = re.compile(r"(?:[-*+•–]|\(?(?:\d{1,3}|[a-zA-Z]|[ivx]{1,4})[.)]|#\.|#+)\s+")  # noqa: RUF001 - dashes as found
_CODE = re.compile(r">>>|\.\.\.(?:\s|$)|In \[\d|\$ |%|@|#|<|\||\.\.(?:\s|$)|__\s")
_TABLE = re.compile(r"[|+].*[|+]|[=\-+|~ ]{4,}|.*\S\s{3,}\S.*|.*\S[ \t]+--?[ \t]+\S.*")

_LETTERS = re.compile(r"[A-Za-z]")
_STRANGE = re.compile(
    r"[#_]{2}|[{}<>|\\^=~@$`*\ufffd\x00-\x1f]|https?:|www\.|->|\.\.\.|::|--|//|%[sdr(]|\[\d|TODO|FIXME|XXX"
    r"|[Cc]opyright|All rights reserved|Licensed under"
)
_CODE_WORD = re.compile(r"\w*_\w*|\w+(?:\.\w+)+|\w+\(.*|\w*[a-z][A-Z]\w*|[\w.]*\d[\w.]*|[^\w\s]*|[A-Z]{2,}")
_COMMON = frozenset(
    re.findall(
        r"\w+",
        """the a an of to and is in for that be this it are with as on by or from not if can will when which you used
        has all one at its no have was but than into only any each their they there""",
    )
)


@dataclass(frozen=True)
class _Block:
    """Consecutive lines of one indentation; ``joined`` if no blank line stands between it and the one before."""

    indent: int
    joined: bool
    lines: list[str] = field(default_factory=list)


def prose_paragraphs(docstring: str) -> list[str]:
    """The paragraphs of a docstring that read as English prose, each on one line, without markup.

    A sentence that doesn't read as prose is left out and ends its paragraph there, so what stands together stood
    together.
    """
    found: list[str] = []
    for paragraph in _candidates(_blocks(_FENCED.sub("", inspect.cleandoc(docstring)).split("\n"))):
        kept: list[str] = []
        for sentence in split_sentences(plain_text(paragraph)):
            if reads_as_prose(sentence):
                kept.append(sentence)
            elif kept:
                found.append(" ".join(kept))
                kept = []
        if kept:
            found.append(" ".join(kept))
    return found


def reads_as_prose(sentence: str) -> bool:
    """Whether a sentence, free of markup, reads as English: a capital first, a full stop last, mostly plain words."""
    words = sentence.split()
    if not 4 <= len(words) <= 80 or not sentence[0].isupper() or sentence[-1] not in '.!?"':
        return False
    if _STRANGE.search(sentence) or sentence.count("(") != sentence.count(")") or sentence.count('"') % 2:
        return False
    plain = [word.strip("\"'(),.;:!?[]") for word in words]
    num_code = sum(1 for word in plain if _CODE_WORD.fullmatch(word))
    if num_code > 1 + len(words) // 8:
        return False
    if not any(word.lower() in _COMMON for word in plain):
        return False
    return len(_LETTERS.findall(sentence)) >= 0.75 * len(sentence)


def _blocks(lines: list[str]) -> list[_Block]:
    """Cut at blank lines, where the indentation changes, and before lines that open something new."""
    blocks: list[_Block] = []
    after_blank = True
    for line in lines:
        text = line.strip()
        if not text:
            after_blank = True
            continue
        indent = len(line) - len(line.lstrip())
        opens = (
            _FIELD.match(text) or _LIST_ITEM.match(text) or text.startswith(("..", ">>>")) or _SECTION.fullmatch(text)
        )
        if after_blank or opens or indent != blocks[-1].indent or _SECTION.fullmatch(blocks[-1].lines[-1]):
            blocks.append(_Block(indent, joined=not after_blank))
        blocks[-1].lines.append(text)
        after_blank = False
    return blocks


def _candidates(blocks: list[_Block]) -> Iterator[str]:
    """The text of the blocks that may hold prose, one string a paragraph."""
    margin = 0  # where prose stands here
    beyond: int | None = None  # what is indented more than this belongs to something left out
    in_section = False  # under an underlined heading of something left out
    for block, following in zip_longest(blocks, blocks[1:]):
        lines = block.lines
        if len(lines) > 1 and _UNDERLINE.fullmatch(lines[1]):
            in_section = not _PROSE_SECTION.fullmatch(lines[0].strip(": "))
            lines, beyond, margin = lines[2:], None, block.indent
        if in_section or (beyond is not None and block.indent > beyond) or not lines:
            continue
        beyond = None
        directive = _PROSE_DIRECTIVE.fullmatch(lines[0])
        if directive or _PROSE_SECTION.fullmatch(lines[0].removesuffix(":")):
            lines = [*([directive[1]] if directive and directive[1] else []), *lines[1:]]
            margin = following.indent if following and not lines else block.indent
            if not lines:
                continue
        margin = min(margin, block.indent)
        defines = following is not None and following.joined and following.indent > block.indent
        if block.indent > margin or defines or _is_no_prose(lines):
            beyond = min(block.indent, margin) if block.indent > margin else block.indent
            continue
        if lines[-1].endswith(":"):
            beyond = block.indent
        yield _PROSE_PREFIX.sub("", " ".join(lines))


def _is_no_prose(lines: list[str]) -> bool:
    first = lines[0]
    return (
        any(_TABLE.fullmatch(line) or _UNDERLINE.fullmatch(line) for line in lines)
        or _FIELD.match(first) is not None
        or _LIST_ITEM.match(first) is not None
        or _CODE.match(first) is not None
        or _SECTION.fullmatch(first) is not None
    )
