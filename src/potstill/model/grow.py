"""A deeper model that says exactly what the shallower one says, and has room to learn more.

A block whose two output projections are zero adds nothing to the residual stream, so inserting such blocks changes no
logit. They start as copies of the block before them, which gives their projections features to learn from.
"""

import copy

import torch
from transformers import LlamaForCausalLM
from transformers.initialization import no_init_weights

from potstill.core.errors import RecipeError

__all__ = ["grow_depth"]


def grow_depth(model: LlamaForCausalLM, blocks: int) -> LlamaForCausalLM:
    """A copy of the model with so many blocks and the same logits.

    Old blocks keep their order; the new ones are spread evenly behind them.

    Raises: RecipeError: ``blocks`` is less than the model has.
    Source: Gong et al. 2019 (progressive stacking); differs: the copies' outputs start at zero, as in Zhang et al.
        2019 (Fixup) and Shen et al. 2022 (staged training), so growing loses nothing.
    """
    shallow = model.config.num_hidden_layers
    if blocks < shallow:
        raise RecipeError(f"a model of {shallow} blocks can't grow to {blocks}", where="teacher.grow_from.blocks")
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = blocks
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[0]] * blocks
    with no_init_weights():
        deep = LlamaForCausalLM(config)
    deep.to(model.device, model.dtype)  # type: ignore[arg-type] # transformers wraps torch's `to`
    deep.tie_weights()
    parents = [index * shallow // blocks for index in range(blocks)]
    with torch.no_grad():
        deep.model.embed_tokens.load_state_dict(model.model.embed_tokens.state_dict())
        deep.model.norm.load_state_dict(model.model.norm.state_dict())
        deep.lm_head.load_state_dict(model.lm_head.state_dict())
        for index, parent in enumerate(parents):
            block = deep.model.layers[index]
            block.load_state_dict(model.model.layers[parent].state_dict())
            if index > 0 and parents[index - 1] == parent:
                block.self_attn.o_proj.weight.zero_()
                block.mlp.down_proj.weight.zero_()
    deep.generation_config = copy.deepcopy(model.generation_config)
    return deep
