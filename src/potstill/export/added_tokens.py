"""Which tokens stand outside of a tokenizer's merges, and does llama.cpp find them in a text as Hugging Face does?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType

from potstill.export.refusal import cannot_be_carried

__all__ = ["TakenTokens", "take_added_tokens"]

_PHI3_KEEPS_SPACES = frozenset({"<unk>", "<s>", "<|endoftext|>"})
_PHI3 = "phi-3"
"""In a file of a model of this name llama.cpp drops the spaces after all special tokens but those three."""

_ENDS = frozenset(
    {
        "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
        "<end_of_turn>", "<|endoftext|>", "</s>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
        "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<\uff5cend▁of▁sentence\uff5c>",
    }
)  # fmt: skip
"""Tokens that llama.cpp takes for the end of a text by their name, and so never finds in plain text."""


@dataclass(frozen=True)
class TakenTokens:
    """Texts and types by id; a model's name where llama.cpp must know one; what isn't carried, in words."""

    texts: Mapping[int, str]
    types: Mapping[int, TokenType]
    model_name: str | None
    fallbacks: Sequence[str]


def take_added_tokens(content: Mapping[str, Any], path: Path, *, space_before: bool | None) -> TakenTokens:
    """Read ``added_tokens``; ``space_before`` as in ``GgufTokenizer``.

    Raises: InputError: a token that isn't special, and that llama.cpp would find in other places of a text.
    """
    tokens: Sequence[Mapping[str, Any]] = content.get("added_tokens") or ()
    types: dict[int, TokenType] = {}
    fallbacks = []
    model_name = _PHI3 if _spaces_as_in_phi3(tokens) else None
    for token in tokens:
        named_as_end = token["content"] in _ENDS
        types[token["id"]] = TokenType.CONTROL if token["special"] or named_as_end else TokenType.USER_DEFINED
        if named_as_end and not token["special"]:
            fallbacks.append(f"llama.cpp reads {token['content']} in a text as plain text, the tokenizer as its token")
        if model_name is None and _eats_spaces(token):
            if not token["special"]:
                raise cannot_be_carried(f"the token {token['content']!r}, which takes spaces beside it,", path)
            fallbacks.append(f"llama.cpp keeps the spaces beside {token['content']}, which the tokenizer drops")
    plain = [token for token in tokens if types[token["id"]] == TokenType.USER_DEFINED]
    _refuse_normalized(plain, content, path, space_before=space_before)
    _refuse_overlaps([str(token["content"]) for token in plain], path)
    return TakenTokens({token["id"]: token["content"] for token in tokens}, types, model_name, fallbacks)


def _eats_spaces(token: Mapping[str, Any]) -> bool:
    return bool(token.get("lstrip") or token.get("rstrip") or token.get("single_word"))


def _spaces_as_in_phi3(tokens: Sequence[Mapping[str, Any]]) -> bool:
    names = {token["content"] for token in tokens}
    as_there = all(
        bool(token.get("rstrip")) == (token["content"] not in _PHI3_KEEPS_SPACES)
        and not token.get("lstrip")
        and not token.get("single_word")
        for token in tokens
    )
    return as_there and names >= _PHI3_KEEPS_SPACES | {"</s>"}


def _refuse_normalized(
    plain: Sequence[Mapping[str, Any]], content: Mapping[str, Any], path: Path, *, space_before: bool | None
) -> None:
    """Tokens looked for after spaces were replaced are found elsewhere than in the text that llama.cpp looks at."""
    if space_before is None or content.get("normalizer") is None:
        return
    for token in plain:
        if token.get("normalized") and (space_before or set(" ▁") & set(token["content"])):
            raise cannot_be_carried(f"the token {token['content']!r}, which is looked for in normalized text,", path)


def _refuse_overlaps(plain: Sequence[str], path: Path) -> None:
    """Hugging Face takes the token that begins first, llama.cpp the longest; runs of one character agree."""
    starts: dict[str, list[str]] = {}
    for text in plain:
        for end in range(1, len(text)):
            starts.setdefault(text[:end], []).append(text)
    for text in plain:
        for begin in range(1, len(text)):
            for other in starts.get(text[begin:], ()):
                if other != text and len(set(text + other)) > 1:
                    raise cannot_be_carried(f"the tokens {text!r} and {other!r}, which can overlap,", path)
