"""A grown model is deeper, says the same, and can learn in every block."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.core.errors import RecipeError
from potstill.model.build import build_llama
from potstill.model.grow import grow_depth
from potstill.model.shapes import LlamaShape


def shallow_model(blocks: int, *, tied: bool = True):
    shape = LlamaShape(blocks=blocks, width=32, mlp_width=64, heads=1, kv_heads=1, vocabulary=50, tied=tied)
    return build_llama(shape, seed=blocks)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 3), st.integers(0, 4), st.booleans())
def test_growing_changes_no_logit(blocks, more, tied):
    model = shallow_model(blocks, tied=tied)
    grown = grow_depth(model, blocks + more)
    tokens_BT = torch.arange(24).reshape(2, 12)
    assert grown.config.num_hidden_layers == blocks + more
    torch.testing.assert_close(grown(tokens_BT).logits, model(tokens_BT).logits, rtol=0, atol=1e-6)


def test_every_new_block_learns():
    """After two steps no block is without an output any more, so none is dead weight."""
    grown = grow_depth(shallow_model(1), 4)
    optimizer = torch.optim.SGD(grown.parameters(), lr=0.5)
    tokens_BT = torch.randint(0, 50, (4, 12), generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        grown(tokens_BT, labels=tokens_BT).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for block in grown.model.layers:
        assert block.self_attn.o_proj.weight.abs().max() > 0
        assert block.mlp.down_proj.weight.abs().max() > 0


def test_the_parent_is_left_alone_and_nothing_is_shared():
    model = shallow_model(2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grown = grow_depth(model, 4)
    with torch.no_grad():
        for parameter in grown.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_model_never_grows_smaller():
    with pytest.raises(RecipeError, match="can't grow to 1"):
        grow_depth(shallow_model(2), 1)
