"""Does llama.cpp know how a byte-level BPE tokenizer cuts text before its merges, and by which name?"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from potstill.core.durable import canonical_json
from potstill.export.refusal import cannot_be_carried, refuse_variations_of_bpe

__all__ = ["is_nfc", "parts_of", "pre_tokenizer_name"]

_LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2_REGEX = _LLAMA3_REGEX.replace("{1,3}", "")
_BYTES_BY_REGEX = ("ByteLevel", False, True)
_BYTES_ALONE = ("ByteLevel", False, False)

_PRE_TOKENIZERS: Mapping[tuple[Any, ...], tuple[str, bool]] = MappingProxyType(
    {
        (_BYTES_BY_REGEX,): ("gpt-2", False),
        (("Digits", True), _BYTES_BY_REGEX): ("smollm", False),
        (("Split", _LLAMA3_REGEX, "Isolated", False), _BYTES_ALONE): ("llama-bpe", True),
        (("Split", _QWEN2_REGEX, "Isolated", False), _BYTES_ALONE): ("qwen2", False),
    }
)
"""What cuts the text before the merges: llama.cpp's name for it, and whether it looks whole pieces up first."""


def pre_tokenizer_name(content: Mapping[str, Any], path: Path) -> str:
    """llama.cpp's name of the cut that a ``tokenizer.json`` makes.

    Raises: InputError: llama.cpp would cut text in another way than this tokenizer does.
    """
    model = content["model"]
    refuse_variations_of_bpe(model, path)
    if content.get("normalizer") is not None and not is_nfc(content):
        raise cannot_be_carried(f"the normalizer {content['normalizer']['type']}", path)
    name, whole_pieces = _PRE_TOKENIZERS.get(parts_of(content.get("pre_tokenizer")), ("", False))
    if not name:
        raise cannot_be_carried(f"the pre-tokenizer {canonical_json(content.get('pre_tokenizer'))}", path)
    if bool(model.get("ignore_merges")) != whole_pieces:
        raise cannot_be_carried(f"the pre-tokenizer {name} with ignore_merges {bool(model.get('ignore_merges'))}", path)
    return name


def is_nfc(content: Mapping[str, Any]) -> bool:
    """Whether the tokenizer composes characters first, which llama.cpp leaves to whoever made the text."""
    return (content.get("normalizer") or {}).get("type") == "NFC"


def parts_of(pre_tokenizer: Mapping[str, Any] | None) -> tuple[Any, ...]:
    """A pre-tokenizer by what matters in it; the empty tuple for none."""
    if pre_tokenizer is None:
        return ()
    match pre_tokenizer["type"]:
        case "Sequence":
            return tuple(part for inner in pre_tokenizer["pretokenizers"] for part in parts_of(inner))
        case "ByteLevel":
            return (("ByteLevel", pre_tokenizer.get("add_prefix_space", True), pre_tokenizer.get("use_regex", True)),)
        case "Digits":
            return (("Digits", pre_tokenizer["individual_digits"]),)
        case "Split":
            pattern = pre_tokenizer["pattern"]
            text = pattern.get("Regex") or pattern.get("String") if isinstance(pattern, Mapping) else None
            return (("Split", text, pre_tokenizer["behavior"], pre_tokenizer["invert"]),)
        case other:
            return ((other,),)
