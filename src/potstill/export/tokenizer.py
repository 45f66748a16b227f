"""How is a Hugging Face byte-level BPE tokenizer written into a GGUF file, so that llama.cpp cuts text alike?"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gguf import TokenType

from potstill.core.durable import canonical_json, read_json
from potstill.core.errors import InputError

__all__ = ["GgufTokenizer", "read_tokenizer"]

_LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_BYTES_BY_REGEX = ("ByteLevel", False, True)
_BYTES_ALONE = ("ByteLevel", False, False)

_PRE_TOKENIZERS: Mapping[tuple[Any, ...], tuple[str, bool]] = MappingProxyType(
    {
        (_BYTES_BY_REGEX,): ("gpt-2", False),
        (("Digits", True), _BYTES_BY_REGEX): ("smollm", False),
        (("Split", _LLAMA3_REGEX, "Isolated", False), _BYTES_ALONE): ("llama-bpe", True),
    }
)
"""What cuts the text before the merges: llama.cpp's name for it, and whether it looks whole pieces up first."""


@dataclass(frozen=True)
class GgufTokenizer:
    """The fields ``tokenizer.ggml.*``: one text and type per token id, merges in order, ids of the special tokens."""

    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    bos: int | None
    eos: int | None
    pad: int | None
    num_unused: int


def read_tokenizer(directory: Path, config: Mapping[str, Any]) -> GgufTokenizer:
    """Read ``tokenizer.json``; ids between the tokenizer's size and ``vocab_size`` are filled with unused tokens.

    Raises: InputError: llama.cpp would cut text in another way than this tokenizer does.
    """
    path = directory / "tokenizer.json"
    content = read_json(path)
    pre = _pre_tokenizer(content, path)
    size = int(config["vocab_size"])
    texts: dict[int, str] = {id_: text for text, id_ in content["model"]["vocab"].items()}
    types = dict.fromkeys(texts, TokenType.NORMAL)
    for token in content.get("added_tokens") or ():
        texts[token["id"]] = token["content"]
        types[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    if texts and max(texts) >= size:
        raise InputError(
            f"has the token id {max(texts)}, but the model's vocabulary ends at {size - 1}", where=str(path)
        )
    unused = [id_ for id_ in range(size) if id_ not in texts]
    texts |= {id_: f"<|unused {id_}|>" for id_ in unused}
    types |= dict.fromkeys(unused, TokenType.UNUSED)
    repeated = [text for text, times in Counter(texts.values()).items() if times > 1]
    if repeated:
        raise _unsupported(f"a vocabulary in which {repeated[0]!r} has two ids", path)
    merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"])
    return GgufTokenizer(
        pre=pre,
        tokens=tuple(texts[id_] for id_ in range(size)),
        types=tuple(int(types[id_]) for id_ in range(size)),
        merges=tuple(merges),
        bos=_first_id(config.get("bos_token_id")),
        eos=_first_id(config.get("eos_token_id")),
        pad=_first_id(config.get("pad_token_id")),
        num_unused=len(unused),
    )


def _pre_tokenizer(content: Mapping[str, Any], path: Path) -> str:
    model = content["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise _unsupported(
            f"a {model['type']} model{' with byte fallback' if model.get('byte_fallback') else ''}", path
        )
    for field in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(field):
            raise _unsupported(f"BPE with {field} {model[field]!r}", path)
    if content.get("normalizer") is not None:
        raise _unsupported(f"the normalizer {content['normalizer']['type']}", path)
    parts = _parts(content.get("pre_tokenizer"))
    name, whole_pieces = _PRE_TOKENIZERS.get(parts, ("", False))
    if not name:
        raise _unsupported(f"the pre-tokenizer {canonical_json(content.get('pre_tokenizer'))}", path)
    if bool(model.get("ignore_merges")) != whole_pieces:
        raise _unsupported(f"the pre-tokenizer {name} with ignore_merges {bool(model.get('ignore_merges'))}", path)
    return name


def _parts(pre_tokenizer: Mapping[str, Any] | None) -> tuple[Any, ...]:
    """A pre-tokenizer by what matters in it; the empty tuple for none."""
    if pre_tokenizer is None:
        return ()
    match pre_tokenizer["type"]:
        case "Sequence":
            return tuple(part for inner in pre_tokenizer["pretokenizers"] for part in _parts(inner))
        case "ByteLevel":
            return (("ByteLevel", pre_tokenizer.get("add_prefix_space", True), pre_tokenizer.get("use_regex", True)),)
        case "Digits":
            return (("Digits", pre_tokenizer["individual_digits"]),)
        case "Split":
            pattern = pre_tokenizer["pattern"]
            regex = pattern.get("Regex") if isinstance(pattern, Mapping) else None
            return (("Split", regex, pre_tokenizer["behavior"], pre_tokenizer["invert"]),)
        case other:
            return ((other,),)


def _first_id(value: object) -> int | None:
    """A special token's id; the first one where a configuration lists several."""
    if isinstance(value, list):
        return int(value[0]) if value else None
    return value if isinstance(value, int) else None


def _unsupported(what: str, path: Path) -> InputError:
    return InputError(
        f"{what} can't be carried into GGUF without changing how text is cut",
        where=str(path),
        next_step="potstill carries byte-level BPE cut as GPT-2, SmolLM or Llama 3 do, without a normalizer",
    )
