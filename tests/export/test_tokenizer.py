"""Which tokenizers GGUF can carry, and that the others are refused by what is wrong with them."""

import json

import pytest
from tokenizers import pre_tokenizers

from potstill.core.errors import InputError
from potstill.export.tokenizer import read_tokenizer

CONFIG = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": [0, 5], "pad_token_id": None}


@pytest.fixture
def saved(make_tokenizer, tmp_path):
    def save(**change):
        make_tokenizer(300).save_pretrained(tmp_path)
        path = tmp_path / "tokenizer.json"
        content = json.loads(path.read_text())
        content["model"] |= change.pop("model", {})
        path.write_text(json.dumps(content | change))
        return tmp_path

    return save


def test_tokens_types_merges_and_special_ids_are_carried(saved):
    tokenizer = read_tokenizer(saved(), CONFIG)
    assert tokenizer.pre == "gpt-2"
    assert tokenizer.tokens[0] == "<|endoftext|>"
    assert tokenizer.types[0] == 3
    assert set(tokenizer.types[1:]) == {1}
    assert len(tokenizer.tokens) == 300
    assert len(tokenizer.merges) == 300 - 256 - 1
    assert all(merge.count(" ") == 1 for merge in tokenizer.merges)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (0, 0, None)


def test_ids_beyond_the_tokenizer_become_unused_tokens(saved):
    tokenizer = read_tokenizer(saved(), CONFIG | {"vocab_size": 320})
    assert len(tokenizer.tokens) == len(set(tokenizer.tokens)) == 320
    assert tokenizer.num_unused == 20
    assert set(tokenizer.types[300:]) == {5}


def test_a_tokenizer_larger_than_the_model_is_refused(saved):
    with pytest.raises(InputError, match="has the token id 299, but the model's vocabulary ends at 127"):
        read_tokenizer(saved(), CONFIG | {"vocab_size": 128})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": {"type": "NFKC"}}, "the normalizer NFKC"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "the pre-tokenizer"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}}, "the pre-tokenizer"),
        ({"pre_tokenizer": None}, "the pre-tokenizer null"),
        ({"model": {"byte_fallback": True}}, "byte fallback without the token <0x00>"),
        ({"model": {"type": "Unigram"}}, "a Unigram model"),
        ({"model": {"ignore_merges": True}}, "gpt-2 with ignore_merges True"),
        ({"model": {"type": "WordPiece"}}, "a WordPiece model"),
        ({"model": {"end_of_word_suffix": "</w>"}}, "BPE with end_of_word_suffix '</w>'"),
    ],
)
def test_a_tokenizer_that_would_cut_text_in_another_way_is_refused(saved, change, message):
    with pytest.raises(InputError, match=message):
        read_tokenizer(saved(**change), CONFIG)


def test_one_text_with_two_ids_is_refused_since_llama_cpp_would_abort(saved):
    added = [{"id": 310, "content": "A", "special": False}]
    with pytest.raises(InputError, match="'A' has two ids"):
        read_tokenizer(saved(added_tokens=added), CONFIG | {"vocab_size": 320})


def test_the_cut_of_smollm_is_known_by_its_parts(saved):
    parts = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert read_tokenizer(saved(pre_tokenizer=json.loads(parts.__getstate__())), CONFIG).pre == "smollm"


def test_composing_characters_is_left_to_the_text_and_told(saved):
    """Qwen and Pythia compose first (NFC); nearly all text is composed already."""
    tokenizer = read_tokenizer(saved(normalizer={"type": "NFC"}), CONFIG)
    assert tokenizer.pre == "gpt-2"
    assert "doesn't compose characters" in tokenizer.fallbacks[0]


def test_a_chat_template_is_carried_from_either_file(saved):
    directory = saved()
    assert read_tokenizer(directory, CONFIG).chat_template is None
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": "{{ messages }}"}))
    assert read_tokenizer(directory, CONFIG).chat_template == "{{ messages }}"
    (directory / "chat_template.jinja").write_text("{{ own }}")
    assert read_tokenizer(directory, CONFIG).chat_template == "{{ own }}"
