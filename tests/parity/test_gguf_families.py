"""Every family in GGUF: llama.cpp computes what transformers computes from the same weights, and holds the same codes.

llama.cpp looks GELU up in a table of float16, so families with a GELU are as near as that table is: the tests put the
same table into PyTorch, and say apart from it how far it may go.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from safetensors.torch import load_file, save_file

from potstill.core.errors import InputError
from potstill.core.trace import Trace
from potstill.export.gguf import export_gguf
from potstill.export.gguf_blocks import unpack_q4_0, unpack_q8_0
from potstill.export.llama_layout import gguf_facts, gguf_name
from potstill.export.settings import GgufExport
from potstill.export.stage import check_exports
from potstill.model.weights import Weights
from potstill.runtime.table import open_engine

FAMILIES = (
    "llama", "llama-gqa", "llama3-rope", "smollm", "odd", "odd-heads", "twenty-a-head", "qwen2", "qwen3", "gemma3",
    "phi3", "gpt2", "gpt_neox",
)  # fmt: skip
GELU = {"gemma3_text", "gpt2", "gpt_neox"}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
WINDOWS = {"num_key_value_heads": 1, "head_dim": 32, "sliding_window": 16}
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]
VARIATIONS = {
    "mistral-whole": ("MistralForCausalLM", {"num_key_value_heads": 2, "sliding_window": None}),
    "llama-linear": ("LlamaForCausalLM", {"rope_parameters": LINEAR}),
    "qwen2-linear": ("Qwen2ForCausalLM", {"num_key_value_heads": 4, "rope_parameters": LINEAR}),
    "qwen3-linear": ("Qwen3ForCausalLM", {"num_key_value_heads": 1, "head_dim": 32, "rope_parameters": LINEAR}),
    "phi3-part": (
        "Phi3ForCausalLM",
        {
            "pad_token_id": 0,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75},
        },
    ),
    "neox-in-series": ("GPTNeoXForCausalLM", {"use_parallel_residual": False, "hidden_act": "gelu_new"}),
    "neox-tied": ("GPTNeoXForCausalLM", {"tie_word_embeddings": True}),
    "neox-linear": ("GPTNeoXForCausalLM", {"rope_parameters": LINEAR | {"partial_rotary_factor": 0.5}}),
    "gpt2-untied": ("GPT2LMHeadModel", {"tie_word_embeddings": False}),
    "gemma3-tied-capped": (
        "Gemma3ForCausalLM",
        WINDOWS | {"layer_types": ALTERNATING, "tie_word_embeddings": True, "final_logit_softcapping": 3.0},
    ),
    "gemma3-whole": ("Gemma3ForCausalLM", WINDOWS | {"layer_types": ["full_attention"] * 3}),
    "gemma3-local": ("Gemma3ForCausalLM", WINDOWS | {"layer_types": ["sliding_attention"] * 3}),
    "gemma3-linear": (
        "Gemma3ForCausalLM",
        WINDOWS
        | {
            "layer_types": ALTERNATING,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 12345.0},
            },
        },
    ),
}
PROMPTS = ([0], [0, 5, 9, 301], [0, *range(40, 70)])


class TableGelu(torch.nn.Module):
    """GELU by its tanh formula between numbers of float16, as llama.cpp's table has it from -10 to 10."""

    def forward(self, inputs):
        rounded = inputs.half().float()
        inner = (2 / torch.pi) ** 0.5 * rounded * (1 + 0.044715 * rounded * rounded)
        looked_up = (0.5 * rounded * (1 + torch.tanh(inner))).half().float()
        return torch.where(inputs <= -10, 0.0, torch.where(inputs >= 10, inputs, looked_up))


@pytest.fixture
def tokens_BT():  # noqa: N802 - shape letters in names
    return np.random.default_rng(0).integers(0, 400, (8, 64))


def distance(one_BTV, other_BTV):
    """Root mean square difference in shares of the logits' spread."""
    return float(np.sqrt(np.square(one_BTV - other_BTV).mean()) / other_BTV.std())


def require_same(source, file, tokens_BT):
    with open_engine(source, threads=1) as ours, open_engine(file, threads=1) as theirs:
        plain_BTV, found_BTV = ours.logits(tokens_BT), theirs.logits(tokens_BT)
        assert (found_BTV.argmax(-1) == plain_BTV.argmax(-1)).mean() > 0.99
        family = json.loads((source / "config.json").read_text())["model_type"]
        if family in GELU:
            assert distance(found_BTV, plain_BTV) < 1e-3
            for module in ours._model.modules():
                for name in {"act", "act_fn"} & set(module._modules):
                    setattr(module, name, TableGelu())
            assert distance(found_BTV, ours.logits(tokens_BT)) < 1e-4
        else:
            np.testing.assert_allclose(found_BTV, plain_BTV, atol=1e-4 * plain_BTV.std())
        for prompt in PROMPTS:
            assert theirs.generate(prompt, 40) == ours.generate(prompt, 40)


@pytest.mark.parametrize("name", FAMILIES)
def test_float32_is_transformers(make_family, tmp_path, tokens_BT, name):
    """The logits to rounding, and the same greedy tokens with a cache."""
    export_gguf(make_family(name), tmp_path / "model.gguf", "float32", Trace())
    require_same(make_family(name), tmp_path / "model.gguf", tokens_BT)


@pytest.mark.parametrize("name", VARIATIONS)
def test_variations_of_a_family_are_carried(make_variation, tmp_path, tokens_BT, name):
    source = make_variation(name, *VARIATIONS[name])
    export_gguf(source, tmp_path / "model.gguf", "float32", Trace())
    require_same(source, tmp_path / "model.gguf", tokens_BT)


def back_in_order(rows_O, name, config):
    """Rows in the order of Hugging Face, written out apart from the exporter."""
    width = config.get("head_dim") or config.get("hidden_size", 0) // config.get("num_attention_heads", 1)
    if config["model_type"] == "gpt_neox" and "query_key_value" in name:
        parts = rows_O.reshape(3, config["num_attention_heads"], width, *rows_O.shape[1:])
        return np.concatenate([parts[:, head] for head in range(config["num_attention_heads"])]).reshape(rows_O.shape)
    if config["model_type"] == "llama" and (".q_proj." in name or ".k_proj." in name):
        heads = rows_O.reshape(-1, width, *rows_O.shape[1:])
        return np.concatenate([heads[:, 0::2], heads[:, 1::2]], axis=1).reshape(rows_O.shape)
    return rows_O


@pytest.mark.parametrize(("bits", "group"), [(8, 32), (4, 32), (8, 0), (4, 128)])
@pytest.mark.parametrize("name", FAMILIES)
def test_codes_and_scales_are_read_back_as_they_were_chosen(make_family, make_quantized, tmp_path, name, bits, group):
    """Bit for bit, rows of rotated and fused weights moved as a whole; columns that fill no block are float16."""
    source = make_quantized(make_family(name), bits, group)
    export_gguf(source, tmp_path / "model.gguf", f"int{bits}", Trace())
    weights = Weights(source)
    facts = gguf_facts(weights.config, "")
    written = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    coded = [name for name in weights.names if weights.is_coded(name)]
    assert coded
    for tensor in coded:
        chosen, found = weights.read_coded(tensor), written[gguf_name(tensor, facts)]
        if chosen.codes_OI.shape[1] % 32:
            assert found.tensor_type == GGMLQuantizationType.F16
            continue
        assert found.tensor_type == (GGMLQuantizationType.Q8_0 if bits == 8 else GGMLQuantizationType.Q4_0)
        unpacked = (unpack_q8_0 if bits == 8 else unpack_q4_0)(found.data)
        codes_OI, scales_OG = (
            back_in_order(r, tensor, weights.config) for r in (unpacked.codes_OI, unpacked.scales_OG)
        )
        np.testing.assert_array_equal(codes_OI, chosen.codes_OI)
        repeats = scales_OG.shape[1] // chosen.scales_OG.shape[1]
        np.testing.assert_array_equal(scales_OG, np.repeat(chosen.scales_OG, repeats, axis=1))


@pytest.mark.parametrize("name", ["gemma3", "phi3", "gpt2", "gpt_neox"])
def test_int8_is_pytorch_with_the_same_codes_but_for_rounded_activations(
    make_family, make_quantized, tmp_path, tokens_BT, name
):
    source = make_quantized(make_family(name), 8, 32)
    export_gguf(source, tmp_path / "model.gguf", "int8", Trace())
    with open_engine(source, threads=1) as ours, open_engine(tmp_path / "model.gguf", threads=1) as theirs:
        assert distance(theirs.logits(tokens_BT), ours.logits(tokens_BT)) < 0.05


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scales its attention in its own way"),
        ("gpt2", {"activation_function": "silu"}, "GPT2 has gelu_tanh in its MLP, this model 'silu'"),
        ("llama", {"hidden_act": "gelu"}, "LLAMA has silu in its MLP, this model 'gelu'"),
        ("llama", {"partial_rotary_factor": 0.5, "rope_parameters": None}, "rotates 16 of 32 columns"),
        ("phi3", {"sliding_window": 16}, "looks back 16 tokens only"),
        ("phi3", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "stretched by 'longrope'"),
        ("qwen2", {"final_logit_softcapping": 30.0}, "caps its logits at 30.0"),
        ("gemma3", {"layer_types": ["full_attention", *["sliding_attention"] * 2]}, "that isn't periodic"),
    ],
)
def test_what_a_file_cannot_say_is_refused_before_any_work(make_family, name, change, message):
    config = json.loads((make_family(name) / "config.json").read_text()) | change
    with pytest.raises(InputError, match=message):
        check_exports([GgufExport()], config, "here")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_passes_the_check_before_any_work(make_family, name):
    check_exports([GgufExport()], json.loads((make_family(name) / "config.json").read_text()), "here")


@pytest.mark.parametrize(
    ("name", "kind", "change", "message"),
    [
        ("neox-bare", "GPTNeoXForCausalLM", {"attention_bias": False}, "GPTNEOX needs .*query_key_value.bias"),
        ("qwen3-biased", "Qwen3ForCausalLM", {"attention_bias": True, "head_dim": 32}, "QWEN3 has no .*_proj.bias"),
    ],
)
def test_biases_that_the_graph_hasn_t_are_refused(make_variation, tmp_path, name, kind, change, message):
    with pytest.raises(InputError, match=message):
        export_gguf(make_variation(name, kind, change), tmp_path / "model.gguf", "float32", Trace())
    assert not (tmp_path / "model.gguf").exists()


def test_what_llama_cpp_computes_otherwise_is_a_fallback(make_family, make_variation, tmp_path):
    """GPT-NeoX's GELU by the error function, and a tied head that the file must hold twice."""
    events = []
    source = make_variation("neox-tied", *VARIATIONS["neox-tied"])
    export_gguf(source, tmp_path / "tied.gguf", "float32", Trace(listeners=[events.append]))
    told = [event["value"] for event in events if event["kind"] == "fallback"]
    assert len(told) == 2
    assert "by the error function" in told[0]
    assert "stand in the file twice" in told[1]
    events.clear()
    export_gguf(make_family("gpt2"), tmp_path / "gpt2.gguf", "float32", Trace(listeners=[events.append]))
    assert not [event for event in events if event["kind"] == "fallback"]


def test_masks_that_old_checkpoints_carry_are_left_out(make_family, tmp_path, tokens_BT):
    source = tmp_path / "old"
    shutil.copytree(make_family("gpt2"), source)
    tensors = load_file(source / "model.safetensors")
    save_file(
        tensors | {"transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4)},
        source / "model.safetensors",
        metadata={"format": "pt"},
    )
    export_gguf(source, tmp_path / "model.gguf", "float32", Trace())
    with open_engine(tmp_path / "model.gguf", threads=1) as theirs:
        assert np.isfinite(theirs.logits(tokens_BT)).all()
