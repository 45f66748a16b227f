"""Tokenizers with ▁ for spaces and bytes for unknown characters: llama.cpp cuts every text as Hugging Face does."""

import json
import random

import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from potstill.core.errors import InputError
from potstill.core.trace import Trace
from potstill.export import tokenizer as export_tokenizer
from potstill.export.gguf import export_gguf
from potstill.export.spaced_bpe import BYTES
from potstill.runtime.llama_cpp import LlamaCppEngine

TEXT = (
    "The function returns a copy of the array, if it's not None; otherwise it'll raise a ValueError.",
    "Parameters are given as keyword arguments: 12 of them, 3.14 by default, in 2026.",
    "Überraschung! Größe, naïve café, ελληνικά, русский текст, 日本語のテキスト.",
    "def f(x):\n    return x ** 2  # squares\n\n\tTabs and   spaces   are kept.      ----- ===== .....",
)
NASTY = (
    "",
    " ",
    "   leading and trailing   ",
    "tabs\tand\n\nnew\r\nlines \n ",
    "<s> in the text </s> is plain <unk> text <0x0A> <0xE2>",
    "123 4567 3.14e-10 ٣٤٥ ½ Ⅷ ²",
    "naïve café Größe ελληνικά русский עברית العربية हिन्दी ไทย",
    "🙂🚀👩‍👩‍👧‍👦🇩🇪 e\u0301 \u200b\u200d\ufeff",
    "a\u00a0b\u2003c\u3000d\u2028e\u0085f",
    "\x00\x01\x1f\x7f \U0010ffff\ue000",
    "▁ ▁▁ literal▁marks",
    "!!!??...---___***``` " + "-" * 37 + " " * 41 + "=" * 29,
    "def f(x):\n    return x ** 2  # squares\n",
    "x" * 3000,
)
PREPEND = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
FALLING_BACK = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
REPLACE = normalizers.Replace(" ", "▁")


def all_merges(vocabulary):
    """Every way to make each token of two others, in the order of the tokens, as converted SentencePiece files have."""
    merges = []
    for text in sorted(vocabulary, key=vocabulary.get):
        cuts = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        pairs = [(left, right) for left, right in cuts if left in vocabulary and right in vocabulary]
        merges += sorted(pairs, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return merges


def spaced(normalizer, *, every_merge, split_by=None, vocabulary=700):
    """A tokenizer trained on ``TEXT``: special tokens, bytes, characters, then merged pieces."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizer
    trained.pre_tokenizer = split_by
    specials = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 259, initial_alphabet=["▁"], show_progress=False, max_token_length=12
    )
    trained.train_from_iterator(TEXT * 3, trainer)
    learned = json.loads(trained.to_str())["model"]
    texts = [*specials, *BYTES, *sorted(learned["vocab"], key=learned["vocab"].get)]
    ids = {text: id_ for id_, text in enumerate(texts)}
    merges = [tuple(merge) for merge in learned["merges"]]
    if every_merge:
        alphabet = [text for text in ids if len(text) == 1]
        joined = {text: ids[text] for text in [*alphabet, *("".join(merge) for merge in merges)]}
        merges = all_merges(joined)
    made = Tokenizer(models.BPE(vocab=ids, merges=merges, **FALLING_BACK))
    made.normalizer = normalizer
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens(specials)
    return made


def saved(tokenizer, model, directory, **config):
    for path in model.iterdir():
        if path.name in {"model.safetensors", "config.json", "generation_config.json"}:
            (directory / path.name).write_bytes(path.read_bytes())
    tokenizer.save(str(directory / "tokenizer.json"))
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token_id": 1, "eos_token_id": 2} | config))
    return directory


def fields_of(path):
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


KINDS = {
    "llama-2": (PREPEND, True, None, "llama"),
    "gemma": (REPLACE, True, pre_tokenizers.Split(" ", "merged_with_previous"), "llama"),
    "trained": (REPLACE, False, pre_tokenizers.Split("\n", "isolated"), "gpt2"),
}


@pytest.fixture(scope="module", params=KINDS)
def pair(request, make_llama, tmp_path_factory):
    """A GGUF file's tokenizer in llama.cpp, and the same one in Hugging Face's library, names taken as plain text."""
    normalizer, every_merge, split, model = KINDS[request.param]
    tokenizer = spaced(normalizer, every_merge=every_merge, split_by=split)
    if request.param == "gemma":
        tokenizer.pre_tokenizer = split
    directory = saved(tokenizer, make_llama("wide-720", vocabulary=720), tmp_path_factory.mktemp("spaced"))
    export_gguf(directory, directory / "model.gguf", "int8", Trace())
    fields = fields_of(directory / "model.gguf")
    assert fields["tokenizer.ggml.model"] == model
    assert fields["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]
    tokenizer.encode_special_tokens = True
    with LlamaCppEngine(directory / "model.gguf", threads=1) as engine:
        yield engine, lambda text: tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_nasty_text_is_cut_alike(pair, text):
    engine, huggingface = pair
    assert engine.tokenize(text) == huggingface(text)


def test_every_character_below_two_thousand_is_cut_alike(pair):
    engine, huggingface = pair
    for code in range(1, 0x800):
        text = f"a{chr(code)}b {chr(code)}{chr(code)}1 {chr(code)} "
        assert engine.tokenize(text) == huggingface(text), hex(code)


def test_words_of_the_text_in_any_order_are_cut_alike(pair):
    engine, huggingface = pair
    random_ = random.Random(0)
    pieces = [piece for line in TEXT for piece in line.replace(" ", " | ").split("|")] + ["  ", "\n", "-", "=", "."]
    for _ in range(500):
        text = "".join(random_.choices(pieces, k=12))
        assert engine.tokenize(text) == huggingface(text)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", max_codepoint=0x2FFF), max_size=60))
def test_any_text_is_cut_alike(pair, text):
    engine, huggingface = pair
    assert engine.tokenize(text) == huggingface(text)


def test_tokens_become_text_again(pair):
    engine, _ = pair
    for text in ("plain words", "Größe 🙂\n  two"):
        assert engine.detokenize(engine.tokenize(text)).strip() == text


@pytest.fixture
def model(make_llama):
    return make_llama("wide-720", vocabulary=720)


def test_merges_that_scores_cannot_say_are_refused_with_a_space_before(model, tmp_path):
    tokenizer = spaced(PREPEND, every_merge=False)
    with pytest.raises(InputError, match=r"BPE with byte fallback in which .* aren't merged"):
        export_gguf(saved(tokenizer, model, tmp_path), tmp_path / "x.gguf", "int8", Trace())
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
          "normalizer": None}, "a space before texts that don't begin with one"),
        ({"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True},
          "normalizer": None}, "the pre-tokenizer"),
        ({"normalizer": {"type": "NFKC"}}, "the normalizer"),
    ],
)  # fmt: skip
def test_other_treatments_of_spaces_are_refused(model, tmp_path, change, message):
    directory = saved(spaced(PREPEND, every_merge=True), model, tmp_path)
    path = directory / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        export_gguf(directory, tmp_path / "x.gguf", "int8", Trace())


def test_a_missing_byte_is_refused(model, tmp_path):
    directory = saved(spaced(PREPEND, every_merge=True), model, tmp_path)
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["<other>"] = content["model"]["vocab"].pop("<0x41>")
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="byte fallback without the token <0x41>"):
        export_gguf(directory, tmp_path / "x.gguf", "int8", Trace())


def test_special_tokens_template_and_added_tokens_are_carried(model, tmp_path):
    """As Phi-3 has them: spaces after its markers are dropped, which llama.cpp knows by the model's name."""
    tokenizer = spaced(PREPEND, every_merge=True)
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>"), AddedToken("<|user|>", rstrip=True)])
    tokenizer.add_tokens([AddedToken("<tag>", normalized=False)])
    directory = saved(tokenizer, model, tmp_path, pad_token_id=0)
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text())
    for token in content["added_tokens"]:
        token["rstrip"] = token["content"] in {"</s>", "<|user|>", "<tag>"}
    path.write_text(json.dumps(content))
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    export_gguf(directory, tmp_path / "x.gguf", "int8", Trace())
    fields = fields_of(tmp_path / "x.gguf")
    assert fields["general.name"] == "phi-3"
    assert fields["tokenizer.chat_template"] == "{{ messages }}"
    assert fields["tokenizer.ggml.add_space_prefix"] is True
    assert [fields[f"tokenizer.ggml.{key}_token_id"] for key in ("bos", "eos", "padding", "unknown")] == [1, 2, 0, 0]


def test_tokens_outside_of_the_merges_are_found_in_plain_text(model, tmp_path):
    """As Gemma has lines and tags; they come before everything else in both."""
    tokenizer = spaced(REPLACE, every_merge=True)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("\n\n", "\n\n\n", "<table>", "</table>")])
    directory = saved(tokenizer, model, tmp_path)
    export_gguf(directory, tmp_path / "x.gguf", "int8", Trace())
    tokenizer.encode_special_tokens = True
    with LlamaCppEngine(tmp_path / "x.gguf", threads=1) as engine:
        for text in ("a\n\n b<table> \n\n\n\n\n</table></table>", "<table><tab\n\nle>"):
            assert engine.tokenize(text) == tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([AddedToken("<tag>", normalized=False, lstrip=True)], "'<tag>', which takes spaces beside it"),
        ([AddedToken("two words", normalized=True)], "looked for in normalized text"),
        (
            [AddedToken("ab", normalized=False), AddedToken("bcd", normalized=False)],
            "'ab' and 'bcd', which can overlap",
        ),
    ],
)
def test_added_tokens_that_llama_cpp_finds_elsewhere_are_refused(model, tmp_path, tokens, message):
    tokenizer = spaced(REPLACE, every_merge=True)
    tokenizer.add_tokens(tokens)
    with pytest.raises(InputError, match=message):
        export_gguf(saved(tokenizer, model, tmp_path), tmp_path / "x.gguf", "int8", Trace())


def test_spaces_that_special_tokens_take_are_a_fallback(model, tmp_path):
    tokenizer = spaced(REPLACE, every_merge=True)
    tokenizer.add_special_tokens([AddedToken("<|user|>", rstrip=True)])
    tokenizer.add_tokens([AddedToken("<eos>", normalized=False)])
    events = []
    export_gguf(saved(tokenizer, model, tmp_path), tmp_path / "x.gguf", "int8", Trace(listeners=[events.append]))
    told = [event["value"] for event in events if event["kind"] == "fallback"]
    assert told == [
        "llama.cpp keeps the spaces beside <|user|>, which the tokenizer drops",
        "llama.cpp reads <eos> in a text as plain text, the tokenizer as its token",
    ]


def test_what_both_cut_differently_is_found_by_asking_both(model, tmp_path, monkeypatch):
    """The last guard: scores in the wrong order pass no comparison."""
    directory = saved(spaced(PREPEND, every_merge=True), model, tmp_path)
    scores_of = export_tokenizer.scores_of
    monkeypatch.setattr(export_tokenizer, "scores_of", lambda *given: ([-x for x in scores_of(*given)[0]], ""))
    with pytest.raises(InputError, match=r"a tokenizer of which llama\.cpp cuts .* into other tokens"):
        export_gguf(directory, tmp_path / "x.gguf", "int8", Trace())
    assert not (tmp_path / "x.gguf").exists()
