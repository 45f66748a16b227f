"""How is BPE over whole texts, with ▁ for spaces and bytes for unknown characters, written into a GGUF file?

llama.cpp has two ways. By *scores*: neighbours are joined wherever their text is a token, the best score first. That is
the tokenizer's own order only if every way to join two pieces to a token is among its merges, and the merges that make
one token stand together. By *merges*: exactly the tokenizer's list, but no space is put before the text, and no piece
reaches over the end of a line.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.core.durable import canonical_json
from potstill.export.byte_level import parts_of
from potstill.export.refusal import cannot_be_carried, refuse_variations_of_bpe

__all__ = ["BYTES", "MERGES_BY_LINE", "SPACE", "has_space_before", "is_spaced", "lines_apart", "scores_of"]

SPACE = "▁"
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
MERGES_BY_LINE = "sarvam-moe"
"""llama.cpp's name of the cut that escapes spaces, keeps lines apart and merges characters or falls back to bytes."""

_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPEND = {"type": "Prepend", "prepend": SPACE}
_NO_CUT = (("Split", " ", "MergedWithPrevious", False),)
"""Cuts after spaces, of which none is left."""

Merge = tuple[str, str]


def is_spaced(content: Mapping[str, Any]) -> bool:
    """Whether a ``tokenizer.json`` is of this kind."""
    return content["model"]["type"] == "BPE" and bool(content["model"].get("byte_fallback"))


def has_space_before(content: Mapping[str, Any], path: Path) -> bool:
    """Whether a space is put before every text; the whole cut must be one that llama.cpp makes.

    Raises: InputError: it isn't.
    """
    model = content["model"]
    refuse_variations_of_bpe(model, path)
    if model.get("ignore_merges"):
        raise cannot_be_carried("BPE with byte fallback and ignore_merges", path)
    missing = [byte for byte in BYTES if byte not in model["vocab"]]
    if missing:
        raise cannot_be_carried(f"byte fallback without the token {missing[0]}", path)
    normalizer = content.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    cut = parts_of(content.get("pre_tokenizer"))
    if steps == [_PREPEND, _REPLACE] and not cut:
        return True
    if steps == [_REPLACE] and cut in {(), _NO_CUT}:
        return False
    if content.get("normalizer") is None and cut == (("Metaspace",),):
        metaspace = content["pre_tokenizer"]
        if metaspace.get("replacement") == SPACE and not metaspace.get("split", True):
            if metaspace["prepend_scheme"] == "never":
                return False
            raise cannot_be_carried(
                f"a space before texts that don't begin with one ({canonical_json(metaspace)})", path
            )
    raise cannot_be_carried(
        f"the normalizer {canonical_json(content.get('normalizer'))} with "
        f"the pre-tokenizer {canonical_json(content.get('pre_tokenizer'))}",
        path,
    )


def scores_of(
    texts: Sequence[str], merges: Sequence[Merge], taken_before: Collection[str]
) -> tuple[list[float] | None, str]:
    """A score for each token by which llama.cpp joins pieces in the order of the merges, and why there are none.

    ``taken_before`` are tokens that are taken out of a text first, so that its pieces never come together to them;
    those with spaces still may, since spaces are replaced later.

    Returns: scores and "", or None and the reason in words.
    """
    made = ["".join(merge) for merge in merges]
    place: dict[str, int] = {}
    for index, text in enumerate(made):
        if text in place and made[index - 1] != text:
            return None, f"the merges that make {text!r} don't stand together"
        place.setdefault(text, len(place))
    known, pieces = set(merges), set(made)
    taken = {text for text in taken_before if not set(text) & {" ", SPACE}}
    for text in texts:
        if text in taken:
            continue
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if (cut > 1 and left not in pieces) or (len(right) > 1 and right not in pieces):
                continue
            if (left, right) not in known:
                return None, f"{left!r} and {right!r} make the token {text!r}, but aren't merged"
    return [-float(place.get(text, len(place))) for text in texts], ""


def lines_apart(merges: Sequence[Merge]) -> bool:
    """Whether no merge joins the end of a line to anything else."""
    return all(set("".join(merge)) == {"\n"} or "\n" not in "".join(merge) for merge in merges)
