"""Tiny random models and tokenizers for the tests of this folder."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from potstill.model.build import build_llama
from potstill.model.shapes import LlamaShape


@pytest.fixture
def tiny_llama() -> LlamaForCausalLM:
    return build_llama(LlamaShape(2, 32, 64, 1, 1, 64), seed=1)


@pytest.fixture
def tokenizer_dir(tmp_path: Path) -> Path:
    words = {word: number for number, word in enumerate(["<|endoftext|>", *(f"w{number}" for number in range(63))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))  # noqa: S106 - a token of text
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    directory = tmp_path / "tokenizer"
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>")  # noqa: S106
    fast.save_pretrained(directory)
    return directory


@pytest.fixture
def random_tokens() -> Callable[..., torch.Tensor]:
    def tokens(vocabulary: int, rows: int = 2, length: int = 9) -> torch.Tensor:
        return torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))

    return tokens
