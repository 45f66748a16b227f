"""Small models and text to prune them on."""

import pytest
import torch
from transformers import LlamaForCausalLM

from potstill.model.build import build_llama
from potstill.model.shapes import LlamaShape


@pytest.fixture
def model() -> LlamaForCausalLM:
    """Four blocks whose parts all do something, with MLPs so wide that any budget can be met."""
    return _lively(LlamaShape(4, 32, 2048, 1, 1, 96))


@pytest.fixture
def coarse() -> LlamaForCausalLM:
    """A model of which only large parts can be removed."""
    return _lively(LlamaShape(3, 32, 64, 1, 1, 96))


def _lively(shape: LlamaShape) -> LlamaForCausalLM:
    model = build_llama(shape, seed=2)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(5)
    return model


@pytest.fixture
def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    tokens_NT = torch.randint(96, (8, 12), generator=generator)
    scored_NT = torch.ones(8, 12, dtype=torch.bool)
    scored_NT[:, 9:] = False
    return [(tokens_NT[:5], scored_NT[:5]), (tokens_NT[5:], scored_NT[5:])]
