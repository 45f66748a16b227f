"""reStructuredText and Markdown turned into plain text: roles, links, emphasis, literals."""

import re

__all__ = ["plain_text"]

_SUBSTITUTIONS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\[([^\[\]]+)\]\((?:[^()\s]|\([^()]*\))+\)"), r"\1"),  # [text](address)
    (re.compile(r":[a-zA-Z][\w:+.-]*:`~(?:[\w.]*\.)?(\w+)`"), r"\1"),  # :class:`~a.b.C`
    (re.compile(r":[a-zA-Z][\w:+.-]*:`!?([^`<]+?)\s*<[^`>]*>`"), r"\1"),  # :ref:`text <target>`
    (re.compile(r":[a-zA-Z][\w:+.-]*:`[!.]?([^`]+)`"), r"\1"),  # :func:`x`
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{0,2}"), r"\1"),  # `text <address>`_
    (re.compile(r"\[`[~!]?([^`]+)`\](?!\()"), r"\1"),  # [`x`], transformers' own
    (re.compile(r"``([^`]+)``"), r"\1"),
    (re.compile(r"(?<!`)`([^`]+)`_{0,2}"), r"\1"),
    (re.compile(r"\s?\[(?:\d+|#\w*|\*|[A-Z]\w+\d{2,4}[a-z]?)\]_"), ""),  # [1]_
    (re.compile(r"\*\*([^*\s](?:[^*]*[^*\s])?)\*\*"), r"\1"),
    (re.compile(r"(?<![\w*])\*([^*\s](?:[^*]*[^*\s])?)\*(?![\w*])"), r"\1"),
    (re.compile(r"(?<=[a-z])_{1,2}(?=[\s,.;:)])"), ""),  # link_
    (re.compile(r"[ \t]+([,.;:])(?=\s|$)"), r"\1"),
    (re.compile(r"[ \t]{2,}"), " "),
)


def plain_text(text: str) -> str:
    """The text as a reader sees it: ``x``, `x`_, :func:`x`, **x** and [x](address) all become x."""
    for pattern, replacement in _SUBSTITUTIONS:
        text = pattern.sub(replacement, text)
    return text.strip()
