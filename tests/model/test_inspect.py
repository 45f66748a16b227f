"""Inspecting from the config alone: exact for small models, instant and without memory for the largest."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, GPT2Config, LlamaForCausalLM, OPTConfig

from potstill.core.errors import InputError, RemoteError
from potstill.model.build import build_llama
from potstill.model.inspect import inspect_config
from potstill.model.inspect_built import inspect_model, inspect_unbuilt
from potstill.model.shapes import LlamaShape
from potstill.model.store import save_model

OPT_175B = OPTConfig(
    hidden_size=12288,
    word_embed_proj_dim=12288,
    ffn_dim=49152,
    num_hidden_layers=96,
    num_attention_heads=96,
)


def test_parts_of_a_llama_are_those_of_its_shape():
    shape = LlamaShape(3, 64, 96, 2, 1, 100)
    facts = inspect_model(build_llama(shape, seed=0))
    assert facts["parts"] == {
        "embeddings": 100 * 64,
        "attention": 3 * 2 * 64 * 32 * 3,
        "mlp": 3 * 3 * 64 * 96,
        "norms": (2 * 3 + 1) * 64,
        "head": 0,
        "other": 0,
    }
    assert facts["parameters"] == shape.parameters
    assert facts["tied"]


def test_an_untied_head_is_counted_as_such():
    facts = inspect_model(build_llama(LlamaShape(1, 32, 32, 1, 1, 100, tied=False), seed=0))
    assert facts["parts"]["head"] == facts["parts"]["embeddings"] == 3200
    assert not facts["tied"]


def test_bytes_are_those_of_blocks_of_32_columns_and_float32_elsewhere():
    shape = LlamaShape(2, 64, 96, 2, 2, 100)
    norms = 5 * 64
    matrices = shape.parameters - norms
    assert inspect_model(build_llama(shape, seed=0))["bytes"] == {
        "float32": 4 * shape.parameters,
        "float16": 2 * shape.parameters,
        "int8": matrices // 32 * 34 + 4 * norms,
        "int4": matrices // 32 * 18 + 4 * norms,
    }


def test_columns_that_do_not_divide_by_32_stay_in_float32():
    facts = inspect_model(build_llama(LlamaShape(1, 32, 48, 1, 1, 64), seed=0))
    down = 32 * 48
    norms = 3 * 32
    assert facts["bytes"]["int8"] == (facts["parameters"] - down - norms) // 32 * 34 + 4 * (down + norms)


def test_the_columns_of_gpt2s_transposed_linears_are_their_inputs():
    config = GPT2Config(n_embd=32, n_layer=1, n_head=1, n_inner=48, vocab_size=64, n_positions=16)
    facts = inspect_model(AutoModelForCausalLM.from_config(config))
    odd = 32 * 48  # mlp.c_proj: [48 in, 32 out] as stored, 48 columns as a matrix
    small = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters() if weight.ndim == 1)
    assert facts["bytes"]["int8"] == (facts["parameters"] - odd - small) // 32 * 34 + 4 * (odd + small)


@pytest.mark.parametrize(
    "family", ["llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3", "gpt2", "gpt_neox", "opt"]
)
def test_every_weight_of_common_families_finds_its_part(family: str):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family))
    facts = inspect_model(model)
    assert facts["parts"]["other"] == 0
    assert min(facts["parts"][part] for part in ("embeddings", "attention", "mlp", "norms")) > 0
    assert facts["parameters"] == sum(weight.numel() for weight in model.parameters())


def test_a_model_of_175_billion_answers_within_a_second_and_without_memory(tmp_path: Path):
    OPT_175B.save_pretrained(tmp_path)
    inspect_config(tmp_path)  # the first call imports the family's module
    start = time.perf_counter()
    facts = inspect_config(tmp_path)
    assert time.perf_counter() - start < 5  # it takes 0.1 s; the rest is for a busy machine
    assert facts["parameters"] == 174_604_468_224
    assert facts["bytes"]["int4"] / facts["bytes"]["float16"] == pytest.approx(0.28125, abs=5e-4)  # biases stay float32


def test_directory_config_file_and_model_say_the_same(tiny_llama: LlamaForCausalLM, tmp_path: Path):
    save_model(tiny_llama, None, tmp_path)
    facts = inspect_config(tmp_path)
    assert facts == inspect_config(tmp_path / "config.json") == inspect_model(tiny_llama)
    assert json.loads(json.dumps(facts)) == facts


def test_inspecting_leaves_torchs_random_state_alone(tmp_path: Path):
    OPT_175B.save_pretrained(tmp_path)
    before = torch.get_rng_state()
    inspect_config(tmp_path)
    assert torch.equal(before, torch.get_rng_state())


def test_a_config_with_custom_code_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "auto_map": {"AutoConfig": "evil.Config"}}')
    with pytest.raises(InputError, match="auto_map"):
        inspect_config(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["[]", "{", '{"model_type": "no-such"}', '{"model_type": "llama", "hidden_size": "wide"}', "{}"],
)
def test_a_config_that_describes_nothing_is_an_input_error(tmp_path: Path, content: str):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json"):
        inspect_config(tmp_path / "config.json")


def test_a_model_that_writes_no_text_is_an_input_error(tmp_path: Path):
    config = BertConfig().to_dict() | {"model_type": "vit"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="no causal language model"):
        inspect_config(tmp_path)


def test_a_hub_id_offline_is_a_remote_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RemoteError):
        inspect_config("nobody/no-such-model")


_SMALL = {"num_hidden_layers": 3, "hidden_size": 64, "vocab_size": 100, "num_attention_heads": 4}
_GATED = {**_SMALL, "intermediate_size": 96, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", **_GATED},
        {"model_type": "llama", **_GATED, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
        {"model_type": "llama", **_GATED, "head_dim": 24},
        {"model_type": "mistral", **_GATED, "head_dim": 16},
        {"model_type": "qwen2", **_GATED, "tie_word_embeddings": True},
        {"model_type": "qwen3", **_GATED, "head_dim": 32, "attention_bias": True},
        {"model_type": "phi3", **_GATED, "pad_token_id": 0},
        {"model_type": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 100, "n_positions": 48},
        {
            "model_type": "gpt2",
            "n_layer": 2,
            "n_embd": 64,
            "n_head": 4,
            "vocab_size": 90,
            "n_positions": 8,
            "n_inner": 72,
        },
        {"model_type": "gpt_neox", **_SMALL, "intermediate_size": 80},
        {"model_type": "gpt_neox", **_SMALL, "intermediate_size": 80, "attention_bias": False},
        {"model_type": "opt", **_SMALL, "ffn_dim": 96, "max_position_embeddings": 40, "word_embed_proj_dim": 64},
    ],
    ids=lambda config: config["model_type"],
)
def test_a_known_family_is_counted_as_the_model_that_transformers_builds(config, tmp_path, monkeypatch):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    built = inspect_unbuilt(file)
    monkeypatch.setattr("potstill.model.inspect_built.inspect_unbuilt", None)  # so that no fallback can hide
    assert inspect_config(file) == built


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "opt", **_SMALL, "ffn_dim": 96, "max_position_embeddings": 40, "word_embed_proj_dim": 32},
        {"model_type": "opt", **_SMALL, "ffn_dim": 96, "max_position_embeddings": 40, "enable_bias": False},
        {"model_type": "llama", **_SMALL, "intermediate_size": 96},
        {"model_type": "smollm3", **_GATED, "pad_token_id": 0},
    ],
    ids=["opt that projects", "opt without biases", "llama without its key-value heads", "a family not written down"],
)
def test_what_the_layouts_do_not_tell_is_built_instead(config, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    assert inspect_config(file) == inspect_unbuilt(file)


def test_a_known_family_needs_no_torch(tmp_path):
    """175 B parameters are counted in the time that Python takes to start."""
    OPT_175B.save_pretrained(tmp_path)
    code = (
        "import sys; from potstill.model.inspect import inspect_config\n"
        "facts = inspect_config(sys.argv[1]); assert 'torch' not in sys.modules; print(facts['parameters'])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 174_604_468_224
