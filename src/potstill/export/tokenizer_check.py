"""Does llama.cpp, reading the file just written, cut texts as the Hugging Face tokenizer does? Asked of both.

Rules say which tokenizers can be carried; this is the proof on texts where cutters differ: spaces, lines, digits,
signs, scripts, bytes, runs of one character, and the tokenizer's own tokens in a row.
"""

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from potstill.core.durable import read_json
from potstill.export.byte_level import is_nfc
from potstill.export.refusal import cannot_be_carried
from potstill.export.spaced_bpe import SPACE
from potstill.runtime.llama_vocab import cut_all

__all__ = ["require_same_cut"]

_TEXTS = (
    " ",
    "  two spaces before, one after ",
    "tabs\tand\n\nnew\r\nlines \n ",
    "it's IT'S we'll they'd I'm 've 're 'Ve",
    "123 4567 3.14e-10 ٣٤٥ ½ Ⅷ ²",
    "naïve café Größe ελληνικά русский עברית العربية हिन्दी ไทย 日本語 中文 한국어",
    "🙂🚀👩‍👩‍👧‍👦🇩🇪 e\u0301 \u200b\u200d\ufeff a\u00a0b\u2003c\u3000d\u2028e\u0085f",
    "\x00\x01\x1f\x7f \U0010ffff\U000e0001\ue000",
    "!!!??...---___***``` <html></html> {[(1+1)]} a_b-c/d\\e",
    "def f(x):\n    return x ** 2  # squares\n\n\n\tif x:\n\t\tpass\n",
    "▁ literal ▁▁ marks▁ and <0x0A> <0xFF>",
)
_MOST_PIECES = 4000
_PIECES_IN_A_TEXT = 16
_LONGEST_RUN = 24


def require_same_cut(directory: Path, file: Path) -> None:
    """Cut many texts by both, names of special tokens taken as plain text.

    Raises: InputError: naming a text that they cut differently.
    """
    path = directory / "tokenizer.json"
    content = read_json(path)
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts = [*_TEXTS, *_runs(content["model"]["vocab"]), *_pieces(tokenizer)]
    if is_nfc(content):
        texts = [unicodedata.normalize("NFC", text) for text in texts]
    expected = tokenizer.encode_batch(texts, add_special_tokens=False)
    for text, ours, theirs in zip(texts, expected, cut_all(file, texts), strict=True):
        if ours.ids != theirs:
            raise cannot_be_carried(f"a tokenizer of which llama.cpp cuts {text[:80]!r} into other tokens", path)


def _runs(vocabulary: dict[str, int]) -> Iterator[str]:
    """Runs of each character that some token repeats, alone and between letters."""
    for character in sorted({text[0] for text in vocabulary if len(text) > 1 and len(set(text)) == 1}):
        plain = " " if character in {SPACE, "Ġ"} else character
        for length in range(1, _LONGEST_RUN):
            yield plain * length
            yield f"a{plain * length}b"


def _pieces(tokenizer: Tokenizer) -> Iterator[str]:
    """Texts of tokens, spread over the vocabulary, several in a row: without a gap, and with one."""
    added = set(tokenizer.get_added_tokens_decoder())
    ids = [id_ for id_ in range(tokenizer.get_vocab_size()) if id_ not in added]
    ids = ids[:: max(1, len(ids) // _MOST_PIECES)]
    pieces = [tokenizer.decode([id_], skip_special_tokens=False) for id_ in ids]
    for start in range(0, len(pieces), _PIECES_IN_A_TEXT):
        part = pieces[start : start + _PIECES_IN_A_TEXT]
        yield "".join(part)
        yield " ".join(part)
