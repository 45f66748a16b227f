import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from potstill.core.errors import InputError
from potstill.data.tokenizer import END_OF_TEXT, TextCoder, load_tokenizer, token_text, train_tokenizer

TEXTS = ["The quick brown fox jumps over the lazy dog. " * 5, "Größe, naïveté, 東京, 🦊 and numbers 1234."]


@pytest.fixture(scope="module")
def coder() -> TextCoder:
    return TextCoder.of(train_tokenizer(TEXTS, 300), where="test")


@given(st.text())
def test_any_text_comes_back_from_its_tokens(coder: TextCoder, text):
    (ids,) = coder.encode([text])
    assert coder.tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert coder.beginning_id not in ids


def test_text_that_spells_a_special_token_stays_text(coder: TextCoder):
    (ids,) = coder.encode([f"a {END_OF_TEXT} b"])
    assert coder.beginning_id not in ids
    assert coder.tokenizer.decode(ids) == f"a {END_OF_TEXT} b"


def test_the_special_token_is_id_0_in_all_three_roles(coder: TextCoder):
    tokenizer = coder.tokenizer
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0, 0)
    assert (coder.beginning_id, coder.end_id) == (0, 0)
    assert tokenizer.decode([0]) == END_OF_TEXT


def test_a_saved_tokenizer_loads_by_transformers_alone_and_gives_the_same_tokens(coder: TextCoder, tmp_path: Path):
    coder.tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(TEXTS, add_special_tokens=False)["input_ids"] == coder.encode(TEXTS)
    assert loaded(END_OF_TEXT)["input_ids"] != [0]
    assert TextCoder.of(load_tokenizer(tmp_path), where="").encode(TEXTS) == coder.encode(TEXTS)


def test_the_pre_tokenizer_is_the_one_of_gpt_2(coder: TextCoder, tmp_path: Path):
    """llama.cpp splits text by the same pattern under the name gpt-2."""
    coder.tokenizer.save_pretrained(tmp_path)
    pre = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["pre_tokenizer"]
    assert (pre["type"], pre["add_prefix_space"], pre["use_regex"]) == ("ByteLevel", False, True)


def test_training_is_deterministic_and_small_text_gives_a_small_vocabulary(tmp_path: Path):
    contents = []
    for name in ("a", "b"):
        tokenizer = train_tokenizer(TEXTS, 5000)
        tokenizer.save_pretrained(tmp_path / name)
        contents.append([path.read_bytes() for path in sorted((tmp_path / name).iterdir())])
        assert 257 < len(tokenizer) < 5000
    assert contents[0] == contents[1]


def test_every_token_can_be_shown(coder: TextCoder):
    texts = [token_text(coder.tokenizer, token_id) for token_id in range(len(coder.tokenizer))]
    assert all(texts)
    assert all("\ufffd" not in text for text in texts)
    (ids,) = coder.encode(["東"])
    assert "".join(token_text(coder.tokenizer, token_id) for token_id in ids).startswith("\\xe6")
    assert token_text(coder.tokenizer, -1) == "<id -1>"
    assert token_text(coder.tokenizer, 10**6) == "<id 1000000>"


def test_a_tokenizer_without_special_tokens_is_refused():
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(InputError, match="neither a beginning- nor an end-of-text token"):
        TextCoder.of(bare, where="here")


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no tokenizer that can be loaded"):
        load_tokenizer(tmp_path)
