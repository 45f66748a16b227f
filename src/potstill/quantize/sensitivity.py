"""Which linears suffer most from being rounded? Each is rounded alone, and next-token distributions compared.

Block by block, as calibration does it: beside one block's weights there are activations of one batch in memory. Hidden
states of the text stand in files, one for the exact model and one for every linear so far with that linear rounded.

Shapes: B rows of a batch, T tokens, D width, P positions, V vocabulary, O rows of a weight, I columns.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from potstill.core import interrupt
from potstill.core.durable import read_json, write_json
from potstill.core.errors import RecipeError
from potstill.core.trace import Trace
from potstill.model.activations import round_inputs
from potstill.model.weights import Weights, inputs_first
from potstill.quantize.calibration import CalibrationText
from potstill.quantize.encode import encode
from potstill.quantize.parts import Part, WorkSoFar, parts_of
from potstill.quantize.placement import Grid, Placement, grid_of
from potstill.quantize.settings import Int8Channel, Keep, KeepSensitive
from potstill.quantize.streaming import HiddenStates, StreamedModel

__all__ = ["SENSITIVITY_FILE", "most_sensitive", "sum_of_forward_kl"]

SENSITIVITY_FILE = "sensitivity.json"
_FLOATS = {"float32", "float16", "bfloat16"}
_LOGITS_AT_ONCE = 1 << 22
_SHOWN = 8


def most_sensitive(
    settings: KeepSensitive,
    weights: Weights,
    placed: Mapping[str, Placement],
    text: CalibrationText,
    work: WorkSoFar,
    trace: Trace,
) -> list[Keep]:
    """Measure what rounding each linear of the blocks to nearest costs, and keep the dearest ones.

    The measurement stands in ``SENSITIVITY_FILE`` of the work so far, so that a killed run doesn't repeat it: the
    forward KL of the model with that one linear rounded from the exact one, in nats per position.

    Raises: RecipeError: the model has no more linears on the scheme's grid than are to be kept. InputError: a family
    whose blocks can't be run alone.
    """
    file = work.folder / SENSITIVITY_FILE
    if not file.is_file():
        measured = _Measurement(weights, placed, text.first(settings.calibration_tokens), work.folder / "sensitivity")
        write_json(file, measured.kl_of_each(trace))
    kl_of: dict[str, float] = read_json(file)
    if len(kl_of) <= settings.linears:
        raise RecipeError(
            f"keep_sensitive: {settings.linears} linears are to be kept, and {len(kl_of)} are rounded at all",
            where=str(weights.directory),
            next_step="keep fewer, or take a finer scheme",
        )
    ranked = sorted(kl_of, key=lambda name: (-kl_of[name], name))
    kept = ranked[: settings.linears]
    rows = [{"linear": name, "kl_nats": kl_of[name], "kept": name in kept} for name in ranked[: len(kept) + _SHOWN]]
    trace.table("what rounding one linear alone costs", rows)
    return [Keep(tensors=name, dtype=settings.dtype) for name in kept]


def sum_of_forward_kl(exact_PV: Tensor, other_PV: Tensor) -> float:
    """The sum over positions of KL(exact || other), in nats, computed in float64."""
    step, total = max(1, _LOGITS_AT_ONCE // exact_PV.shape[1]), 0.0
    for exact, other in zip(torch.split(exact_PV, step), torch.split(other_PV, step), strict=True):
        exact_logs, other_logs = (part.double().log_softmax(-1) for part in (exact, other))
        total += float((exact_logs.exp() * (exact_logs - other_logs)).sum())
    return total


class _Measurement:
    """One pass over the blocks; ``folder`` holds the hidden states, and is removed at the end."""

    def __init__(self, weights: Weights, placed: Mapping[str, Placement], text: CalibrationText, folder: Path) -> None:
        self._weights = weights
        self._placed = placed
        self._text = text
        self._folder = folder
        self._model = StreamedModel(weights, bfloat16=False)
        self._shape = (*text.tokens_NT.shape, self._model.width)

    def kl_of_each(self, trace: Trace) -> dict[str, float]:
        """Forward KL per position, in nats, by the name of the linear that is rounded."""
        if self._folder.exists():
            shutil.rmtree(self._folder)
        self._folder.mkdir()
        exact = self._states("exact", 0)
        self._model.embed(self._text.tokens_NT, exact)
        changed: dict[str, HiddenStates] = {}
        parts = [part for part in parts_of(self._weights.names) if part.block is not None]
        for done, part in enumerate(parts, start=1):
            exact = self._through_block(part, exact, changed)
            trace.progress("measure sensitivity", done, len(parts), "blocks")
        told = self._compare(exact, changed)
        shutil.rmtree(self._folder)
        return told

    def _through_block(self, part: Part, exact: HiddenStates, changed: dict[str, HiddenStates]) -> HiddenStates:
        """Pass everything on through a block, and begin a way of its own for each of its linears."""
        block = part.block
        assert block is not None  # noqa: S101 - chosen so
        tensors = {name: self._weights.read(name).float().contiguous() for name in part.tensors}
        module = self._model.fill(block, tensors)
        for name, states in changed.items():
            changed[name] = self._pass_on(block, states, name)
            states.path.unlink()
        for name, linear in self._model.linears(block).items():
            grid = self._placed[name].grid
            if grid.name not in _FLOATS:
                changed[name] = self._rounded(block, name, tensors[name], exact, (module, linear, grid))
        after = self._pass_on(block, exact, "exact")
        exact.path.unlink()
        self._model.empty(block)
        return after

    def _rounded(
        self, block: int, name: str, weight: Tensor, exact: HiddenStates, parts: tuple[nn.Module, nn.Module, Grid]
    ) -> HiddenStates:
        """What comes out of the block with one linear rounded, its activations too where the scheme does that."""
        module, linear, grid = parts
        turned = inputs_first(self._weights.config, name)
        back_OI = encode(name, (weight.T.contiguous() if turned else weight).numpy(), grid).back
        rounded = torch.from_numpy(np.ascontiguousarray(back_OI.T) if turned else back_OI)
        own = name.removeprefix(self._model.prefix(block))
        hooks = [round_inputs(linear)] if grid == grid_of(Int8Channel()) else []
        module.load_state_dict({own: rounded}, strict=False, assign=True)
        states = self._pass_on(block, exact, name)
        module.load_state_dict({own: weight}, strict=False, assign=True)
        for hook in hooks:
            hook.remove()
        return states

    def _pass_on(self, block: int, states: HiddenStates, name: str) -> HiddenStates:
        after = self._states(name, block + 1)
        self._model.pass_on(block, states, after)
        return after

    def _compare(self, exact: HiddenStates, changed: Mapping[str, HiddenStates]) -> dict[str, float]:
        totals = dict.fromkeys(changed, 0.0)
        with self._model.read_out() as logits:
            for row in range(self._shape[0]):
                interrupt.check()
                rows = slice(row, row + 1)
                scored_1T = self._text.scored(rows)
                exact_PV = logits(exact.read(rows)[scored_1T])
                for name, states in changed.items():
                    other_PV = logits(states.read(rows)[scored_1T])
                    totals[name] += sum_of_forward_kl(exact_PV, other_PV)
        return {name: total / self._text.num_tokens for name, total in totals.items()}

    def _states(self, name: str, block: int) -> HiddenStates:
        return HiddenStates(self._folder / f"{name}-{block:05d}.f32", self._shape)
