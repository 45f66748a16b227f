"""Anatomy: for every family in the table, the parts are where it says, and the logits are the model's own."""

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    LlamaForCausalLM,
    PreTrainedModel,
)

from potstill.core.errors import InputError
from potstill.model.anatomy import (
    FAMILIES,
    blocks,
    decoder,
    embeddings,
    final_norm,
    hidden_states,
    linear,
    logits_of,
    output_head,
)

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
MORE = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 16},
    "gpt_neox": {"rotary_pct": 0.5},
    "granite": {"logits_scaling": 3.0, "embedding_multiplier": 2.0},
    "cohere": {"logit_scale": 0.25},
    "gemma2": {"final_logit_softcapping": 0.5},
    "gemma3_text": {"final_logit_softcapping": 0.5},
}
ALIEN = {"gpt2": ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")}


@pytest.fixture(params=sorted(FAMILIES))
def model(request) -> PreTrainedModel:
    family = request.param
    sizes = {name: size for name, size in SIZES.items() if name not in ALIEN.get(family, ())}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(sizes | MORE.get(family, {})))
    return AutoModelForCausalLM.from_config(config).eval()


@torch.no_grad()
def test_logits_of_chosen_positions_are_the_models_own(model: PreTrainedModel, random_tokens):
    tokens_BT = random_tokens(96)
    own_BTV = model(tokens_BT).logits
    chosen_BT = torch.rand(tokens_BT.shape) < 0.5
    hidden_BTD = hidden_states(model, tokens_BT)
    torch.testing.assert_close(logits_of(model, hidden_BTD[chosen_BT]), own_BTV[chosen_BT], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_blocks_and_final_norm_are_the_way_of_the_hidden_states(model: PreTrainedModel, random_tokens):
    seen: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out))
        for block in blocks(model)
    ]
    hidden_BTD = hidden_states(model, random_tokens(96))
    for hook in hooks:
        hook.remove()
    assert len(seen) == 2
    last_BTD = final_norm(model)(seen[-1])
    if model.config.model_type == "opt":
        last_BTD = model.model.decoder.project_out(last_BTD)
    torch.testing.assert_close(last_BTD, hidden_BTD)


def test_padding_to_the_right_changes_nothing_before_it(model: PreTrainedModel, random_tokens):
    tokens_BT = random_tokens(96)
    other_BT = tokens_BT.clone()
    other_BT[:, 6:] = 0
    with torch.no_grad():
        hidden_BTD, other_BTD = hidden_states(model, tokens_BT), hidden_states(model, other_BT)
    torch.testing.assert_close(hidden_BTD[:, :6], other_BTD[:, :6], rtol=1e-5, atol=1e-6)


def test_every_linear_of_the_table_is_there_and_holds_a_matrix(model: PreTrainedModel):
    for role in FAMILIES[model.config.model_type].linears:
        assert linear(model, 1, role).weight.ndim == 2
    assert embeddings(model).weight.shape[0] == output_head(model).weight.shape[0] == 96
    assert decoder(model) is not model


def test_a_role_that_a_family_has_not_is_an_error_in_words(tiny_llama: LlamaForCausalLM):
    with pytest.raises(InputError, match="no linear 'qkv'; it has q, k, v"):
        linear(tiny_llama, 0, "qkv")


def test_an_unknown_family_is_named_with_those_that_are_known():
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16, vocab_size=16)
    config.is_decoder = True
    with pytest.raises(InputError, match=r"(?s)family 'bert'.*llama"):
        decoder(BertLMHeadModel(config))


def test_a_model_without_head_is_told_how_to_be_loaded(tiny_llama: LlamaForCausalLM):
    with pytest.raises(InputError, match=r"(?s)no part 'lm_head'.*AutoModelForCausalLM"):
        output_head(tiny_llama.model)
