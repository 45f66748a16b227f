"""How is a Hugging Face tokenizer written into a GGUF file, so that llama.cpp cuts text alike?"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType

from potstill.core.durable import read_json
from potstill.core.errors import InputError
from potstill.export.added_tokens import TakenTokens, take_added_tokens
from potstill.export.byte_level import is_nfc, pre_tokenizer_name
from potstill.export.refusal import cannot_be_carried
from potstill.export.spaced_bpe import BYTES, MERGES_BY_LINE, has_space_before, is_spaced, lines_apart, scores_of

__all__ = ["GgufTokenizer", "read_tokenizer"]


@dataclass(frozen=True)
class GgufTokenizer:
    """The fields ``tokenizer.ggml.*``: one text and type per token id, and merges in order or scores.

    ``model`` and ``pre`` are llama.cpp's names for it. ``space_before`` is None where llama.cpp doesn't ask.
    ``model_name`` is a name by which llama.cpp knows how this tokenizer treats spaces after special tokens.
    ``fallbacks`` says what is not carried, in words.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    scores: tuple[float, ...] | None
    space_before: bool | None
    bos: int | None
    eos: int | None
    pad: int | None
    unknown: int | None
    chat_template: str | list[dict[str, str]] | None
    model_name: str | None
    num_unused: int
    fallbacks: tuple[str, ...]


def read_tokenizer(directory: Path, config: Mapping[str, Any]) -> GgufTokenizer:
    """Read ``tokenizer.json``; ids between the tokenizer's size and ``vocab_size`` are filled with unused tokens.

    Raises: InputError: llama.cpp would cut text in another way than this tokenizer does.
    """
    path = directory / "tokenizer.json"
    content = read_json(path)
    spaced = is_spaced(content)
    space_before = has_space_before(content, path) if spaced else None
    pre = "default" if spaced else pre_tokenizer_name(content, path)
    added = take_added_tokens(content, path, space_before=space_before)
    texts, types, num_unused = _vocabulary(content, added, int(config["vocab_size"]), path)
    merges = _merges(content)
    scores = None
    if spaced:
        plain = [added.texts[id_] for id_, type_ in added.types.items() if type_ == TokenType.USER_DEFINED]
        scores, reason = scores_of(texts, merges, plain)
        if scores is None:
            if space_before or not lines_apart(merges):
                raise cannot_be_carried(f"BPE with byte fallback in which {reason}", path)
            pre = MERGES_BY_LINE
    fallbacks = list(added.fallbacks)
    if is_nfc(content):
        fallbacks.append("llama.cpp doesn't compose characters (NFC) as the tokenizer does: give it composed text")
    return GgufTokenizer(
        model="gpt2" if scores is None else "llama",
        pre=pre,
        tokens=tuple(texts),
        types=tuple(types),
        merges=() if scores is not None else tuple(" ".join(merge) for merge in merges),
        scores=None if scores is None else tuple(scores),
        space_before=space_before if scores is not None else None,
        bos=_first_id(config.get("bos_token_id")),
        eos=_first_id(config.get("eos_token_id")),
        pad=_first_id(config.get("pad_token_id")),
        unknown=content["model"]["vocab"].get(content["model"].get("unk_token")) if spaced else None,
        chat_template=_chat_template(directory),
        model_name=added.model_name,
        num_unused=num_unused,
        fallbacks=tuple(fallbacks),
    )


def _merges(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs in order, whether the file spells them as pairs or with a space between."""
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in content["model"]["merges"])
    return [(left, right) for left, right in pairs]


def _vocabulary(
    content: Mapping[str, Any], added: TakenTokens, size: int, path: Path
) -> tuple[list[str], list[int], int]:
    """Texts and types of all ids, and how many of them have no token."""
    texts: dict[int, str] = {id_: text for text, id_ in content["model"]["vocab"].items()}
    types = dict.fromkeys(texts, TokenType.NORMAL)
    if is_spaced(content):
        vocabulary = content["model"]["vocab"]
        types |= {vocabulary[byte]: TokenType.BYTE for byte in BYTES}
    texts |= added.texts
    types |= added.types
    unknown = content["model"]["vocab"].get(content["model"].get("unk_token"))
    if is_spaced(content) and unknown is not None:
        types[unknown] = TokenType.UNKNOWN
    if texts and max(texts) >= size:
        raise InputError(
            f"has the token id {max(texts)}, but the model's vocabulary ends at {size - 1}", where=str(path)
        )
    unused = [id_ for id_ in range(size) if id_ not in texts]
    texts |= {id_: f"<|unused {id_}|>" for id_ in unused}
    types |= dict.fromkeys(unused, TokenType.UNUSED)
    repeated = [text for text, times in Counter(texts.values()).items() if times > 1]
    if repeated:
        raise cannot_be_carried(f"a vocabulary in which {repeated[0]!r} has two ids", path)
    return [texts[id_] for id_ in range(size)], [int(types[id_]) for id_ in range(size)], len(unused)


def _chat_template(directory: Path) -> str | list[dict[str, str]] | None:
    """The template that turns a conversation into text, from its own file or the tokenizer's configuration."""
    own = directory / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    path = directory / "tokenizer_config.json"
    return read_json(path).get("chat_template") if path.is_file() else None


def _first_id(value: object) -> int | None:
    """A special token's id; the first one where a configuration lists several."""
    if isinstance(value, list):
        return int(value[0]) if value else None
    return value if isinstance(value, int) else None
