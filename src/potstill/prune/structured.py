"""Which whole blocks and MLP channels does the text need least? And a really smaller model without them.

Shapes: B rows, T tokens, P scored positions, L blocks, M MLP channels, D width.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from potstill.core import interrupt
from potstill.core.errors import RecipeError
from potstill.model.anatomy import hidden_states, logits_of
from potstill.prune.activation import ActivationScores, score_by_activation

__all__ = ["PruneOption", "PruneReport", "cut", "prune_structured"]

CHANNELS_PER_STEP = 32
"""MLP widths stay multiples of a quantization group."""

TOLERANCE = 0.02
"""How far from the target a pruned model may be, as a share of the target."""

_POSITIONS = 512

Batches = Sequence[tuple[Tensor, Tensor]]
"""Batches of (tokens_BT int64, scored_BT bool)."""


@dataclass(frozen=True)
class PruneOption:
    """One way to reach the target. ``kl_to_parent_nats``: what it costs on the calibration text, before healing."""

    blocks_removed: int
    mlp_width: int
    parameters: int
    kl_to_parent_nats: float


@dataclass(frozen=True)
class PruneReport:
    """What was removed, why, and what it cost before healing; plain values, ready for JSON.

    ``block_influence``: 1 - cosine similarity between what goes into each block of the parent and what comes out.
    ``channels_removed``: by kept block, numbered as in the parent. ``mlp_score_removed``: by kept block, the removed
    channels' share of the block's summed channel scores.
    """

    parameters_before: int
    parameters_target: int
    parameters_after: int
    blocks_removed: tuple[int, ...]
    block_influence: tuple[float, ...]
    mlp_width_before: int
    mlp_width_after: int
    channels_removed: tuple[tuple[int, ...], ...]
    mlp_score_removed: tuple[float, ...]
    calibration_positions: int
    kl_to_parent_nats: float
    options: tuple[PruneOption, ...]


def prune_structured(
    model: PreTrainedModel, batches: Batches, keep_parameters: float
) -> tuple[PreTrainedModel, PruneReport]:
    """A smaller model of the same family with ``keep_parameters`` of the parameters, within 2 %.

    Where the steps of a small model are coarser than that, it is the nearest there is: compare the report's
    ``parameters_after`` with its ``parameters_target``.

    Blocks go by least influence, channels by least mean |activation| x norm of the column that reads them; every kept
    block loses equally many channels, so the result is an ordinary config. How much of either: of all combinations
    that reach the target, the one with the lowest KL(parent || pruned) on the calibration text. The parent is left as
    it is.

    Raises: RecipeError: no combination is as small as that. InputError: another family, or nothing to calibrate on.
    Cost: two passes over the batches per combination, of which there are at most as many as blocks.
    Source: Men et al. 2024 (ShortGPT), eq. 1; Muralidharan et al. 2024 (Minitron) for channels, differs: weighted by
        the column's norm.
    """
    scores = score_by_activation(model, batches)
    best: tuple[PreTrainedModel, PruneOption] | None = None
    options = []
    for removed, mlp_width in _combinations(model, keep_parameters):
        interrupt.check()
        candidate = cut(model, *_choose(scores, removed, mlp_width))
        nats = _kl_to_parent(model, candidate, batches)
        option = PruneOption(removed, mlp_width, candidate.num_parameters(), nats)
        options.append(option)
        if best is None or nats < best[1].kl_to_parent_nats:
            best = candidate, option
    assert best is not None  # noqa: S101 - _combinations gives at least one, or raises
    return best[0], _report(model, scores, best[1], tuple(options), round(keep_parameters * model.num_parameters()))


def cut(model: PreTrainedModel, kept_blocks: Sequence[int], kept_channels: Sequence[Tensor]) -> PreTrainedModel:
    """A copy of the model with these blocks only, and in each of them these MLP channels only, in this order.

    Shapes: kept_channels one int64 [M'] per kept block, of equal length.
    """
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(kept_blocks)
    config.intermediate_size = len(kept_channels[0])
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[block] for block in kept_blocks]
    with no_init_weights():
        smaller: PreTrainedModel = type(model)(config)
    smaller.to(model.device, model.dtype)  # type: ignore[arg-type]
    smaller.tie_weights()
    smaller.load_state_dict(_cut_weights(model.state_dict(), kept_blocks, kept_channels))
    smaller.generation_config = copy.deepcopy(model.generation_config)
    smaller.train(model.training)
    return smaller


def _cut_weights(
    weights: dict[str, Tensor], kept_blocks: Sequence[int], kept_channels: Sequence[Tensor]
) -> dict[str, Tensor]:
    prefix = "model.layers."
    kept = {name: weight for name, weight in weights.items() if not name.startswith(prefix)}
    for new, (old, channels) in enumerate(zip(kept_blocks, kept_channels, strict=True)):
        for name, weight in weights.items():
            if not name.startswith(f"{prefix}{old}."):
                continue
            part = name.removeprefix(f"{prefix}{old}.")
            if part.startswith(("mlp.gate_proj", "mlp.up_proj")):
                weight = weight[channels.to(weight.device)]  # noqa: PLW2901 - its rows are the channels
            elif part == "mlp.down_proj.weight":
                weight = weight[:, channels.to(weight.device)]  # noqa: PLW2901 - its columns are the channels
            kept[f"{prefix}{new}.{part}"] = weight
    return kept


def _combinations(model: PreTrainedModel, keep_parameters: float) -> list[tuple[int, int]]:
    """(blocks removed, MLP width) pairs that leave the share of parameters, at most one per number of blocks."""
    total = int(model.num_parameters())
    blocks, full = int(model.config.num_hidden_layers), int(model.config.intermediate_size)
    block = model.get_submodule("model.layers.0")
    in_block = sum(weight.numel() for weight in block.parameters())
    mlp = block.get_submodule("mlp").named_parameters()
    per_channel = sum(weight.numel() // full for name, weight in mlp if name != "down_proj.bias")

    def left(removed: int, width: int) -> int:
        return total - removed * in_block - (blocks - removed) * (full - width) * per_channel

    target = keep_parameters * total
    widths = [*range(CHANNELS_PER_STEP, full, CHANNELS_PER_STEP), full]
    smallest = left(blocks - 1, widths[0])
    if target < smallest * (1 - TOLERANCE):
        raise RecipeError(
            f"removing blocks and MLP channels can't leave {keep_parameters:.1%} of this model's {total:,} parameters: "
            f"the smallest reachable share is {smallest / total:.4f}",
            where="prune.keep_parameters",
            next_step=f"ask for at least {smallest / total:.4f}, or train a smaller model",
        )
    nearest = []
    for removed in range(blocks):
        possible = widths if removed or full == widths[0] else widths[:-1]  # removing nothing is no pruning
        nearest.append((removed, min(possible, key=lambda width: abs(left(removed, width) - target))))
    near = [pair for pair in nearest if abs(left(*pair) / target - 1) <= TOLERANCE]
    return near or [min(nearest, key=lambda pair: abs(left(*pair) - target))]


def _choose(scores: ActivationScores, blocks_removed: int, mlp_width: int) -> tuple[list[int], list[Tensor]]:
    """The kept blocks, and each one's kept channels, both in their old order."""
    order_L = scores.influence_L.argsort(stable=True).tolist()
    kept_blocks = sorted(order_L[blocks_removed:])
    kept_channels = [
        scores.channels_LM[block].argsort(descending=True, stable=True)[:mlp_width].sort().values
        for block in kept_blocks
    ]
    return kept_blocks, kept_channels


@torch.no_grad()
def _kl_to_parent(parent: PreTrainedModel, pruned: PreTrainedModel, batches: Batches) -> float:
    """KL(parent || pruned), mean over the scored positions, nats."""
    nats, positions = 0.0, 0
    for tokens_BT, scored_BT in batches:
        interrupt.check()
        scored = scored_BT.to(parent.device)
        parent_PD, pruned_PD = (hidden_states(m, tokens_BT.to(parent.device))[scored] for m in (parent, pruned))
        for chunk in range(0, len(parent_PD), _POSITIONS):  # no more than a few logits of a large vocabulary at once
            positions_P = slice(chunk, chunk + _POSITIONS)
            parent_PV = logits_of(parent, parent_PD[positions_P]).float().log_softmax(-1)
            pruned_PV = logits_of(pruned, pruned_PD[positions_P]).float().log_softmax(-1)
            nats += float(torch.nn.functional.kl_div(pruned_PV, parent_PV, log_target=True, reduction="sum"))
        positions += len(parent_PD)
    return nats / positions


def _report(
    model: PreTrainedModel, scores: ActivationScores, option: PruneOption, options: tuple[PruneOption, ...], target: int
) -> PruneReport:
    kept_blocks, kept_channels = _choose(scores, option.blocks_removed, option.mlp_width)
    full = model.config.intermediate_size
    removed = [sorted(set(range(full)) - set(channels.tolist())) for channels in kept_channels]
    totals = [float(scores.channels_LM[block].sum()) for block in kept_blocks]
    lost = [float(scores.channels_LM[block, gone].sum()) for block, gone in zip(kept_blocks, removed, strict=True)]
    return PruneReport(
        parameters_before=model.num_parameters(),
        parameters_target=target,
        parameters_after=option.parameters,
        blocks_removed=tuple(sorted(set(range(len(scores.influence_L))) - set(kept_blocks))),
        block_influence=tuple(scores.influence_L.tolist()),
        mlp_width_before=full,
        mlp_width_after=option.mlp_width,
        channels_removed=tuple(tuple(gone) for gone in removed),
        mlp_score_removed=tuple(part / whole if whole else 0.0 for part, whole in zip(lost, totals, strict=True)),
        calibration_positions=scores.positions,
        kl_to_parent_nats=option.kl_to_parent_nats,
        options=options,
    )
