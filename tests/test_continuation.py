"""Going on from a text: a directory and its file say the same, whatever the text spells."""

import pytest

from potstill.continuation import continue_text
from potstill.core.errors import InputError
from potstill.core.trace import Trace
from potstill.data.tokenizer import load_tokenizer, train_tokenizer
from potstill.export.gguf import export_gguf
from potstill.model.build import build_llama
from potstill.model.shapes import shape_for_budget
from potstill.model.store import save_model
from potstill.runtime.llama_cpp import LlamaCppEngine

PROMPTS = ["The small still", "", "naïve 日本語 🙂 <|endoftext|>", "a\nb"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A small random Llama with a tokenizer of its own."""
    root = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(["The small still distils a large model into one that runs. 日本語 🙂"] * 3, 300)
    tokenizer.save_pretrained(root / "tokenizer")
    model = build_llama(shape_for_budget(40_000, len(tokenizer)), seed=1)
    model.model.embed_tokens.weight.data.mul_(20)
    save_model(model, root / "tokenizer", root / "model")
    return root / "model"


@pytest.fixture(scope="module")
def file(directory):
    """The same model as a float32 GGUF file."""
    path = directory.parent / "model.gguf"
    export_gguf(directory, path, "float32", Trace())
    return path


@pytest.mark.parametrize("prompt", PROMPTS)
def test_directory_and_file_go_on_alike(directory, file, prompt):
    """PyTorch with the Hugging Face tokenizer and llama.cpp with its own give the same text."""
    assert continue_text(file, prompt, 12) == continue_text(directory, prompt, 12) != ""


def test_llama_cpp_spells_tokens_as_the_tokenizer_does(directory, file):
    """Text to tokens and back is the text, in llama.cpp as in transformers, beginning-of-text token included."""
    tokenizer = load_tokenizer(directory)
    with LlamaCppEngine(file, threads=1) as engine:
        assert engine.beginning_id == tokenizer.bos_token_id
        for prompt in PROMPTS:
            tokens = engine.tokenize(prompt)
            assert engine.detokenize(tokens) == prompt
            assert engine.detokenize([engine.beginning_id, *tokens]) == tokenizer.bos_token + prompt
        assert engine.detokenize([]) == ""


def test_what_is_no_model_is_refused(tmp_path):
    """An error that names the path, not a traceback."""
    with pytest.raises(InputError, match="nothing"):
        continue_text(tmp_path / "nothing.gguf", "a", 1)
