"""Fresh models: the same for the same seed, scaled as GPT-2's, and without a trace in torch's random state."""

import torch

from potstill.model.build import build_llama
from potstill.model.shapes import LlamaShape

SHAPE = LlamaShape(4, 128, 352, 4, 4, 512)


def test_the_seed_alone_decides_the_weights():
    first, second, other = (build_llama(SHAPE, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_torchs_own_random_state_is_not_touched_and_does_not_matter():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build_llama(SHAPE, seed=0)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first.lm_head.weight, build_llama(SHAPE, seed=0).lm_head.weight)


def test_what_writes_into_the_residual_stream_starts_smaller_by_sqrt_of_twice_the_depth():
    weights = build_llama(SHAPE, seed=0).state_dict()
    assert abs(weights["model.layers.1.self_attn.q_proj.weight"].std() / 0.02 - 1) < 0.02
    assert abs(weights["model.layers.1.mlp.down_proj.weight"].std() / (0.02 / 8**0.5) - 1) < 0.02
    assert torch.all(weights["model.norm.weight"] == 1)


def test_the_first_prediction_is_near_uniform():
    tokens_BT = torch.arange(64).reshape(2, 32)
    with torch.no_grad():
        loss = build_llama(SHAPE, seed=0)(tokens_BT, labels=tokens_BT).loss
    assert abs(loss - torch.tensor(512.0).log()) < 0.1


def test_no_embedding_is_frozen_as_padding():
    model = build_llama(SHAPE, seed=0)
    assert model.config.pad_token_id is None
    assert model.model.embed_tokens.padding_idx is None
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
