"""How much do blocks and MLP channels do on this text? Measured while the model reads it.

Shapes: B rows, T tokens, P scored positions, L blocks, M MLP channels, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.core import interrupt
from potstill.core.errors import InputError
from potstill.model.anatomy import blocks, hidden_states, linear

__all__ = ["GATED_FAMILIES", "ActivationScores", "score_by_activation"]

GATED_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Families whose blocks have a gated MLP in three separate linears, and one width for all blocks."""


@dataclass(frozen=True)
class ActivationScores:
    """Shapes: influence_L float64, 0 (the block changes nothing) to 2; channels_LM float64, never negative."""

    influence_L: Tensor
    channels_LM: Tensor
    positions: int


@torch.no_grad()
def score_by_activation(model: PreTrainedModel, batches: Sequence[tuple[Tensor, Tensor]]) -> ActivationScores:
    """Block influence and channel scores over the scored positions of (tokens_BT, scored_BT) batches.

    Influence: 1 - the mean cosine similarity between a block's input and output. A channel's score: its mean
    |activation| times the norm of the column of the down projection that reads it.

    Raises: InputError: a family that can't be pruned so, or no scored position.
    """
    if model.config.model_type not in GATED_FAMILIES:
        raise InputError(
            f"structured pruning doesn't know the family {model.config.model_type!r}",
            next_step=f"use a model of one of {', '.join(GATED_FAMILIES)}",
        )
    meter = _Meter(len(blocks(model)), model.config.intermediate_size)
    hooks = [block.register_forward_hook(meter.block(number)) for number, block in enumerate(blocks(model))]
    down = [linear(model, number, "down") for number in range(len(hooks))]
    hooks += [module.register_forward_pre_hook(meter.channels(number)) for number, module in enumerate(down)]
    try:
        for tokens_BT, scored_BT in batches:
            interrupt.check()
            meter.scored_BT = scored_BT.to(model.device)
            meter.positions += int(scored_BT.sum())
            hidden_states(model, tokens_BT.to(model.device))
    finally:
        for hook in hooks:
            hook.remove()
    if meter.positions == 0:
        raise InputError("the calibration text has no scored position", next_step="calibrate on more sentences")
    norms_LM = torch.stack([module.weight.double().norm(dim=0).cpu() for module in down])  # type: ignore[operator]
    influence_L = 1 - meter.similarity_L / meter.positions
    return ActivationScores(influence_L, meter.activation_LM / meter.positions * norms_LM, meter.positions)


class _Meter:
    """Sums over the scored positions of the batch that is being read."""

    def __init__(self, num_blocks: int, num_channels: int) -> None:
        self.similarity_L = torch.zeros(num_blocks, dtype=torch.float64)
        self.activation_LM = torch.zeros(num_blocks, num_channels, dtype=torch.float64)
        self.positions = 0
        self.scored_BT = torch.zeros(0, 0, dtype=torch.bool)

    def block(self, number: int) -> Callable[[nn.Module, Any, Any], None]:
        def measure(_: nn.Module, inputs: Any, outputs: Any) -> None:  # noqa: ANN401 - torch's hook
            before_PD = inputs[0][self.scored_BT].double()
            after_BTD = outputs[0] if isinstance(outputs, tuple) else outputs
            after_PD = after_BTD[self.scored_BT].double()
            self.similarity_L[number] += torch.cosine_similarity(before_PD, after_PD, dim=-1).sum().cpu()

        return measure

    def channels(self, number: int) -> Callable[[nn.Module, Any], None]:
        def measure(_: nn.Module, inputs: Any) -> None:  # noqa: ANN401 - torch's hook
            self.activation_LM[number] += inputs[0][self.scored_BT].double().abs().sum(dim=0).cpu()

        return measure
