"""Which characters of a run's own text may stand on the page as they are, and how the others are shown.

Everything a run recorded passes ``harmless`` once, when it is read; escaping for HTML is the template's. Tokens pass
``visible`` besides, because in a token the white space is the point.
"""

import unicodedata
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup, escape

__all__ = ["harmless", "harmless_json", "visible"]

_KEPT = "\n\t\u200c\u200d"
_HIDDEN_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
_SPACE_SIGNS = {" ": "·", "\n": "↵", "\t": "⇥", "\u00a0": "⍽"}


def harmless(text: str) -> str:
    """Replace what would change the page around it by a visible name: controls, bidi marks, lone surrogates.

    Line breaks, tabs and the joiners that scripts and emoji need stay.
    """
    return "".join(_shown(char) for char in text)


def harmless_json(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """``harmless`` for every string in a JSON value, keys included."""
    if isinstance(value, str):
        return harmless(value)
    if isinstance(value, Mapping):
        return {harmless(str(key)): harmless_json(part) for key, part in value.items()}
    if isinstance(value, list):
        return [harmless_json(part) for part in value]
    return value


def visible(token: str | None) -> Markup:
    """A token as HTML, its white space drawn in faint signs: "·" a space, "↵" a line break, "⇥" a tab.

    The signs are marked up, so a token that holds a real "·" looks different. ``<bdi>`` keeps right-to-left text
    from turning its neighbours round.
    """
    if token is None:
        return Markup("—")
    if not token:
        return Markup('<bdi class="token"><span class="ws">empty</span></bdi>')
    parts = (
        Markup('<span class="ws">{}</span>').format(_SPACE_SIGNS[char]) if char in _SPACE_SIGNS else escape(char)
        for char in token
    )
    return Markup('<bdi class="token">{}</bdi>').format(Markup("").join(parts))


def _shown(char: str) -> str:
    if char in _KEPT or unicodedata.category(char) not in _HIDDEN_CATEGORIES:
        return char
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"
