"""llama.cpp cuts every text as the Hugging Face tokenizer does, also where it is nasty."""

import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from potstill.core.trace import Trace
from potstill.export import byte_level
from potstill.export import tokenizer as exported
from potstill.export.gguf import export_gguf
from potstill.runtime.llama_cpp import LlamaCppEngine

NASTY = (
    "",
    " ",
    "   leading and trailing   ",
    "tabs\tand\n\nnew\r\nlines \n ",
    "<|endoftext|> in the text is plain text <|endoftext|>",
    "it's IT'S we'll they'd I'm 've 're 'Ve",
    "123 4567 3.14e-10 ٣٤٥ ½ Ⅷ ²",
    "naïve café Größe ελληνικά русский עברית العربية हिन्दी ไทย",
    "日本語 中文 한국어",
    "🙂🚀👩‍👩‍👧‍👦🇩🇪 e\u0301 \u200b\u200d\ufeff",
    "a\u00a0b\u2003c\u3000d\u2028e\u0085f",
    "\x00\x01\x1f\x7f",
    "!!!??...---___***```",
    "def f(x):\n    return x ** 2  # squares\n",
    "\u017f \u212a \u212b \ufb01 \u0130 \u01c5",
    "\U0010ffff\U000e0001\ue000",
    "<|unused 399|> <s> </s> <pad> [PAD399] Ġ Ċ ▁",
    "x" * 3000,
)


def splits():
    llama3 = pre_tokenizers.Split(Regex(byte_level._LLAMA3_REGEX), behavior="isolated", invert=False)
    qwen2 = pre_tokenizers.Split(Regex(byte_level._QWEN2_REGEX), behavior="isolated", invert=False)
    byte_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    return {
        "gpt-2": (pre_tokenizers.ByteLevel(add_prefix_space=False), False),
        "smollm": (pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]), False),
        "llama-bpe": (pre_tokenizers.Sequence([llama3, byte_alone]), True),
        "qwen2": (pre_tokenizers.Sequence([qwen2, byte_alone]), False),
    }


@pytest.fixture(scope="module", params=["gpt-2", "smollm", "llama-bpe", "qwen2"])
def pair(request, make_llama, make_tokenizer, tmp_path_factory):
    """A GGUF file's tokenizer in llama.cpp, and the same one in Hugging Face's library, names taken as plain text."""
    split, ignore_merges = splits()[request.param]
    tokenizer = make_tokenizer(400, split, ignore_merges=ignore_merges)
    directory = tmp_path_factory.mktemp("tokenizer")
    for path in make_llama("tied").iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    tokenizer.save_pretrained(directory)
    export_gguf(directory, directory / "model.gguf", "int8", Trace())
    assert exported.read_tokenizer(directory, json.loads((directory / "config.json").read_text())).pre == request.param
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    with LlamaCppEngine(directory / "model.gguf", threads=1) as engine:
        yield engine, lambda text: backend.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_nasty_text_is_cut_alike(pair, text):
    engine, huggingface = pair
    assert engine.tokenize(text) == huggingface(text)


def test_every_character_below_two_thousand_is_cut_alike(pair):
    engine, huggingface = pair
    for code in range(1, 0x800):
        text = f"a{chr(code)}b {chr(code)}{chr(code)}1 {chr(code)} "
        assert engine.tokenize(text) == huggingface(text), (hex(code), unicodedata.name(chr(code), "?"))


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Z"], max_codepoint=0x2FFF), max_size=60)
)
def test_any_text_is_cut_alike(pair, text):
    engine, huggingface = pair
    assert engine.tokenize(text) == huggingface(text)
