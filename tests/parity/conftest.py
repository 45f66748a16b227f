"""Small random Llamas with a byte-level BPE tokenizer, made once."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from potstill.model.weights import QUANTIZED_FILE, CodedTensor, Weights, coded_entries, inputs_first

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


SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "llama-gqa": ("LlamaForCausalLM", {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True}),
    "llama3-rope": (
        "LlamaForCausalLM",
        {
            "num_key_value_heads": 1,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "smollm": ("LlamaForCausalLM", {"num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 96}),
    "odd": ("LlamaForCausalLM", {"intermediate_size": 172, "num_key_value_heads": 2}),
    "narrow": ("LlamaForCausalLM", {"hidden_size": 32, "tie_word_embeddings": True}),
    "odd-heads": ("LlamaForCausalLM", {"hidden_size": 96, "num_key_value_heads": 2}),
    "twenty-a-head": ("LlamaForCausalLM", {"hidden_size": 80, "num_key_value_heads": 2}),
    "mistral": ("MistralForCausalLM", {"num_key_value_heads": 2, "sliding_window": 16}),
    "qwen2": ("Qwen2ForCausalLM", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", {"num_key_value_heads": 2, "head_dim": 64}),
    "gemma3": (
        "Gemma3ForCausalLM",
        {
            "num_key_value_heads": 1,
            "head_dim": 32,
            "sliding_window": 16,
            "query_pre_attn_scalar": 24,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "phi3": ("Phi3ForCausalLM", {"num_key_value_heads": 2, "pad_token_id": 0, "sliding_window": None}),
    "gpt2": ("GPT2LMHeadModel", {}),
    "gpt_neox": ("GPTNeoXForCausalLM", {}),
}
"""A name, the class of transformers, and how it differs from the sizes that all have."""


@pytest.fixture(scope="session")
def make_variation(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, dict[str, Any]], Path]:
    """A function from a name, a class of transformers and what differs from the sizes of all to a random model."""
    root = tmp_path_factory.mktemp("families")

    def make(name: str, kind: str, shape: dict[str, Any]) -> Path:
        directory = root / name
        if directory.exists():
            return directory
        tokenizer = byte_level_tokenizer(400)
        model_class = getattr(transformers, kind)
        sizes = {
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "tie_word_embeddings": kind == "GPT2LMHeadModel",
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "initializer_range": 0.08,
        }
        if kind == "GPT2LMHeadModel":
            sizes["n_inner"] = sizes.pop("intermediate_size")
        config = model_class.config_class(vocab_size=400, **(sizes | shape))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = model_class(config)
            for parameter_name, parameter in model.named_parameters():
                if parameter.ndim == 1:
                    mean = 1.0 if parameter_name.endswith("weight") and "gemma" not in name else 0.0
                    torch.nn.init.normal_(parameter, mean=mean, std=0.2)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        return directory

    return make


@pytest.fixture(scope="session")
def make_family(make_variation: Callable[[str, str, dict[str, Any]], Path]) -> Callable[[str], Path]:
    """A function from a name of ``SMALL`` to the directory of such a random model; each is made once."""
    return lambda name: make_variation(name, *SMALL[name])


def rounded_to_nearest(weight_OI: NDArray[np.float32], bits: int, group: int) -> CodedTensor:
    """Codes by rounding, with a scale per group of columns, or per row where ``group`` is 0."""
    rows, columns = weight_OI.shape
    groups_OGg = weight_OI.reshape(rows, -1, group or columns)
    most = (1 << (bits - 1)) - 1
    scales_OG = (np.abs(groups_OGg).max(axis=2) / most).astype(np.float16)
    codes_OGg = np.round(groups_OGg / np.maximum(scales_OG, np.float16(1e-7)).astype(np.float32)[:, :, None])
    return CodedTensor(np.clip(codes_OGg, -most - 1, most).astype(np.int8).reshape(rows, columns), scales_OG, bits)


@pytest.fixture(scope="session")
def make_quantized(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, int, int], Path]:
    """A function from a model directory, bits and group (0: a scale per row, W8A8) to its quantized directory.

    Matrices whose columns don't fill groups stay in float16.
    """
    root = tmp_path_factory.mktemp("quantized")

    def make(source: Path, bits: int, group: int) -> Path:
        directory = root / f"{source.parent.name}-{source.name}-int{bits}-g{group}"
        if directory.exists():
            return directory
        weights = Weights(source)
        tensors: dict[str, torch.Tensor] = {}
        for name in weights.names:
            stored = weights.read(name).float()
            turned = stored.T if inputs_first(weights.config, name) else stored
            if stored.ndim == 2 and turned.shape[1] % (group or 1) == 0:
                tensors |= coded_entries(name, rounded_to_nearest(turned.contiguous().numpy(), bits, group))
            else:
                tensors[name] = stored.half() if stored.ndim == 2 else stored
        directory.mkdir()
        scheme = {"scheme": f"int{bits}", "group": group} if group else {"scheme": "int8-channel"}
        metadata = {"scheme": json.dumps(scheme)}
        save_file(tensors, directory / QUANTIZED_FILE, metadata=metadata)
        for path in source.iterdir():
            if path.suffix == ".json":
                shutil.copyfile(path, directory / path.name)
        return directory

    return make
