"""Small random Llamas with a byte-level BPE tokenizer, made once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BEGINNING = "<|endoftext|>"
TEXT = (
    "The function returns a copy of the array, if it's not None; otherwise it'll raise a ValueError.",
    "Parameters are given as keyword arguments: 12 of them, 3.14 by default, in 2026.",
    "Überraschung! Größe, naïve café, ελληνικά, русский текст, 日本語のテキスト, emoji 🙂🚀.",
    "def f(x):\n    return x ** 2  # squares\n\n\tTabs and   spaces   are kept.",
)


def byte_level_tokenizer(vocabulary: int, pre_tokenizer: Any = None, **model: Any) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BEGINNING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BEGINNING, eos_token=BEGINNING)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return byte_level_tokenizer


@pytest.fixture(scope="session")
def make_llama(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function from shapes to the directory of a random Llama; a name is made once."""
    root = tmp_path_factory.mktemp("llamas")

    def make(name: str, *, vocabulary: int = 400, spread: float = 0.08, **shape: Any) -> Path:
        directory = root / name
        if directory.exists():
            return directory
        tokenizer = byte_level_tokenizer(vocabulary)
        sizes = {
            "hidden_size": 128,
            "intermediate_size": 352,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
        }
        config = LlamaConfig(
            vocab_size=vocabulary,
            initializer_range=spread,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **(sizes | shape),
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = LlamaForCausalLM(config)
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        return directory

    return make
