"""Scaled columns: the float model stays itself, and the factors are what the formulas say."""

import numpy as np
import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from potstill.model.anatomy import blocks
from potstill.quantize.folding import FOLDS, apply_fold, folds_of
from potstill.quantize.placement import Grid
from potstill.quantize.scaling import awq_factors, output_error, rounded_to_nearest, smoothquant_factors

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
    "llama-gqa": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=2)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, num_key_value_heads=4)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, num_key_value_heads=4, head_dim=8)),
    "gemma3_text": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, num_key_value_heads=4, head_dim=8)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=0)
    ),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)),
}


@pytest.mark.parametrize("name", MODELS)
def test_folding_leaves_the_float_model_as_it_was(name):
    """Random factors over two decades, in every place that the family's table names; random norms and biases too."""
    torch.manual_seed(0)
    model = MODELS[name]().eval().double()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        before = model(input_ids=tokens).logits
        num_folds = 0
        for block in blocks(model):
            modules = {path: module for path, module in block.named_modules() if hasattr(module, "weight")}
            transposed = name == "gpt2"
            matrices = {
                path: module.weight.T if transposed else module.weight
                for path, module in modules.items()
                if module.weight.ndim == 2
            }
            vectors = {
                f"{path}.{kind}": getattr(module, kind)
                for path, module in modules.items()
                for kind in ("weight", "bias")
                if getattr(module, kind, None) is not None and getattr(module, kind).ndim == 1
            }
            columns = {path: matrix.shape[1] for path, matrix in matrices.items()}
            rows = {path: matrix.shape[0] for path, matrix in matrices.items()}
            for fold in folds_of(model.config.model_type, columns, rows):
                factors = torch.exp(torch.randn(columns[fold.readers[0]], dtype=torch.float64))
                apply_fold(fold, factors, matrices, vectors)
                num_folds += 1
        after = model(input_ids=tokens).logits
    assert num_folds == 2 * (len(FOLDS[model.config.model_type]) - (name in {"llama-gqa", "mistral"}))
    digits = {"rtol": 0, "atol": 1e-6} if name == "gemma3_text" else {"rtol": 1e-8, "atol": 1e-9}
    torch.testing.assert_close(after, before, **digits)  # Gemma's norms compute in float32 whatever they are given


def problem(seed=0):
    generator = np.random.default_rng(seed)
    sizes = np.where(np.arange(64) % 16 == 0, 30.0, 1.0)
    inputs = torch.from_numpy(generator.normal(size=(500, 64)) * sizes)
    weights = [torch.from_numpy(generator.normal(size=(rows, 64))) for rows in (24, 8)]
    return inputs, weights, inputs.T @ inputs


def test_awq_lowers_the_error_of_the_outputs_and_tells_the_exponent_it_chose():
    inputs, weights, hessian = problem()
    grids = [Grid("int4", 32)] * 2
    magnitude = inputs.abs().mean(0)
    factors, exponent = awq_factors(weights, grids, magnitude, hessian, steps=20)

    def error_of(tried):
        return sum(
            output_error(weight, rounded_to_nearest(weight * tried, Grid("int4", 32)) / tried, hessian)
            for weight in weights
        )

    powers = magnitude**exponent
    torch.testing.assert_close(factors, powers / (powers.max() * powers.min()).sqrt())
    assert 0 < exponent <= 1
    assert error_of(factors) < 0.7 * error_of(torch.ones(64, dtype=torch.float64))


def test_awq_keeps_one_where_no_input_was_seen_and_where_nothing_helps():
    _, weights, hessian = problem()
    magnitude = torch.zeros(64, dtype=torch.float64)
    factors, exponent = awq_factors(weights, [Grid("int4", 32)] * 2, magnitude, hessian, steps=4)
    assert torch.equal(factors, torch.ones(64, dtype=torch.float64))
    assert exponent == 0


def test_smoothquant_s_factors_are_the_formula_s_and_balance_both_sides_at_a_half():
    inputs, weights, _ = problem()
    largest = inputs.abs().amax(0)
    largest[5] = 0
    factors = smoothquant_factors(weights, largest, strength=0.5)
    heaviest = torch.cat(weights).abs().amax(0)
    expected = (largest / heaviest).sqrt()
    expected[5] = 1
    torch.testing.assert_close(factors, expected)
    live = torch.arange(64) != 5
    torch.testing.assert_close((largest / factors)[live], (heaviest * factors)[live])
