"""A new Llama with random weights, the same ones for the same seed."""

import math

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.initialization import no_init_weights

from potstill.model.shapes import LlamaShape

__all__ = ["INITIAL_STD", "build_llama", "llama_config"]

INITIAL_STD = 0.02
"""Standard deviation of fresh weights, as in GPT-2."""

_INTO_RESIDUAL = ("o_proj.weight", "down_proj.weight")


def build_llama(
    shape: LlamaShape, *, seed: int, max_position_embeddings: int = 1024, beginning_id: int = 0, end_id: int = 0
) -> LlamaForCausalLM:
    """A float32 Llama of this shape: normal weights of standard deviation 0.02, norms of one.

    What writes into the residual stream starts smaller by sqrt(2 * blocks), so that the stream's variance doesn't grow
    with depth. The weights are a pure function of shape and seed; torch's own random state isn't touched.

    Source: Radford et al. 2019 (GPT-2), 2.3.
    """
    config = llama_config(
        shape, max_position_embeddings=max_position_embeddings, beginning_id=beginning_id, end_id=end_id
    )
    with no_init_weights():
        model: LlamaForCausalLM = LlamaForCausalLM(config).float()  # type: ignore[no-untyped-call]
    model.tie_weights()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.fill_(1.0)
                continue
            std = INITIAL_STD / math.sqrt(2 * shape.blocks) if name.endswith(_INTO_RESIDUAL) else INITIAL_STD
            weight.normal_(0.0, std, generator=generator)
    # No padding id in the model's own config: it would freeze that token's embedding, and here it is the end's.
    ids = {"bos_token_id": beginning_id, "eos_token_id": end_id, "pad_token_id": end_id}
    model.generation_config = GenerationConfig(**ids)  # type: ignore[no-untyped-call]
    model.eval()  # type: ignore[no-untyped-call]
    return model


def llama_config(shape: LlamaShape, *, max_position_embeddings: int, beginning_id: int, end_id: int) -> LlamaConfig:
    """The Hugging Face config of a shape."""
    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.blocks,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_width,
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=shape.tied,
        bos_token_id=beginning_id,
        eos_token_id=end_id,
        pad_token_id=None,
        rms_norm_eps=1e-5,
        dtype="float32",
    )
