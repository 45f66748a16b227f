"""Quantize block by block on text: what a block reads comes out of the quantized blocks before it.

Shapes: N rows, T tokens, B rows of a batch, D width, O rows (outputs) of a weight, I columns (inputs).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from potstill.core import interrupt
from potstill.core.errors import InputError
from potstill.core.trace import Trace
from potstill.data.sequences import PackedSequences
from potstill.model.activations import round_inputs
from potstill.model.native import bfloat16_is_native
from potstill.model.weights import CodedTensor, Weights, inputs_first
from potstill.quantize.encode import Encoded, encode_blocks, encode_coded, squares, to_float
from potstill.quantize.folding import folds_of
from potstill.quantize.methods import CODED, BlockWork, needs_hessian, round_linear, scale_inputs
from potstill.quantize.parts import Part, WorkSoFar
from potstill.quantize.placement import Placement, grid_of
from potstill.quantize.settings import Awq, Calibrated, Gptq, Int8Channel, Scheme, SmoothQuant
from potstill.quantize.statistics import InputStatistics, Observer
from potstill.quantize.streaming import HiddenStates, StreamedModel, batches

__all__ = ["CalibratedBlocks", "CalibrationText", "draw_text", "load_rows"]


@dataclass(frozen=True)
class CalibrationText:
    """Rows that the model reads while it is quantized.

    Shapes: tokens_NT int64, right-padded; lengths_N int64.
    """

    tokens_NT: NDArray[np.int64]
    lengths_N: NDArray[np.int64]

    @property
    def num_tokens(self) -> int:
        """Tokens that are no padding."""
        return int(self.lengths_N.sum())

    def first(self, num_tokens: int) -> "CalibrationText":
        """About ``num_tokens`` tokens of it: rows spread evenly, at least one, all where there are no more."""
        num_rows = min(len(self.lengths_N), max(1, round(num_tokens * len(self.lengths_N) / max(1, self.num_tokens))))
        rows_N = np.linspace(0, len(self.lengths_N) - 1, num_rows).round().astype(np.int64)
        return CalibrationText(self.tokens_NT[rows_N], self.lengths_N[rows_N])

    def scored(self, rows: slice) -> Tensor:
        """Which positions of some rows are no padding, bool [B, T]."""
        return torch.from_numpy(np.arange(self.tokens_NT.shape[1]) < self.lengths_N[rows, None])

    @property
    def fingerprint(self) -> str:
        """Hexadecimal sha256 of the rows."""
        parts = (self.tokens_NT, self.lengths_N)
        return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


def load_rows(data: Path) -> PackedSequences:
    """The training rows of a data stage: no measurement may depend on the others."""
    return PackedSequences.load(data, "train")


def draw_text(sequences: PackedSequences, num_tokens: int, trace: Trace) -> CalibrationText:
    """About ``num_tokens`` tokens in rows that are spread evenly over the sequences; too few of them are told.

    Raises: InputError: there are no rows.
    """
    lengths_N = np.asarray(sequences.lengths_N, dtype=np.int64)
    there = int(lengths_N.sum())
    if not there:
        raise InputError("there is no text to calibrate on", next_step="give a text, or method: rtn")
    if there < num_tokens:
        trace.fallback(f"the text has {there:,} tokens to calibrate on, of the {num_tokens:,} that were asked for")
    num_rows = min(len(lengths_N), max(1, round(num_tokens / (there / len(lengths_N)))))
    rows_N = np.linspace(0, len(lengths_N) - 1, num_rows).round().astype(np.int64)
    longest = int(lengths_N[rows_N].max())
    return CalibrationText(sequences.tokens_NT[rows_N, :longest].astype(np.int64), lengths_N[rows_N])


class CalibratedBlocks:
    """Quantizes the blocks of a model one after another, from first to last.

    Beside one block's weights it has, in memory, what the linears of that block saw, and activations of one batch;
    hidden states of the whole text are in two files of N x T x D x 4 bytes.

    Raises: InputError: a family whose blocks can't be run alone, or whose columns can't be scaled where AWQ or
    SmoothQuant wants to.
    """

    def __init__(
        self, scheme: Scheme, method: Calibrated, weights: Weights, text: CalibrationText, work: WorkSoFar
    ) -> None:
        self._method = method
        self._integer_products = isinstance(scheme, Int8Channel)
        self._weights = weights
        self._text = text
        self._work = work
        # rounded activations are whole numbers of a scale each, which bfloat16 wouldn't keep
        self._model = StreamedModel(weights, bfloat16=bfloat16_is_native("cpu") and not self._integer_products)
        vocabulary = int(weights.config["vocab_size"])
        if int(text.tokens_NT.max(initial=0)) >= vocabulary:
            raise InputError(
                f"the text has token {text.tokens_NT.max()}, the model {vocabulary:,} of them",
                where=str(weights.directory),
                next_step="cut the text with the tokenizer of this model",
            )
        config = weights.config
        self._shape = (*text.tokens_NT.shape, self._model.width)
        self._begun = False
        if isinstance(method, Awq | SmoothQuant) and not folds_of(str(config["model_type"]), _Zeros(), _Zeros()):
            raise InputError(
                f"columns of {config['model_type']} models can't be scaled without changing the model",
                where=str(weights.directory),
                next_step="use method: gptq or search",
            )

    def quantize(self, part: Part, placed: Mapping[str, Placement]) -> dict[str, Any]:
        """Quantize a block, write it, and pass the text on through it; returns what there is to tell."""
        block = part.block
        assert block is not None  # noqa: S101 - tensors outside of the blocks see no activations
        hidden = self._hidden(block)
        if not self._begun:
            self._begin(block, hidden)
        tensors = {name: self._weights.read(name).float().contiguous() for name in part.tensors}
        module = self._model.fill(block, tensors)
        seen = self._observe(block, hidden)
        entries, facts = self._round(block, tensors, placed, seen)
        hooks = self._round_activations(block, placed)
        _assign(module, {name: encoded.back for name, encoded in entries.items()}, self._model.prefix(block))
        self._model.pass_on(block, hidden, self._hidden(block + 1))
        for hook in hooks:
            hook.remove()
        self._model.empty(block)
        tensors = {key: value for one in entries.values() for key, value in one.entries.items()}
        told = self._work.finish(part, tensors, facts)
        hidden.path.unlink()
        return told

    @property
    def head(self) -> str | None:
        """The name of the weight that ``quantize_head`` can quantize, after the blocks; None where there is none."""
        return self._model.head

    def quantize_head(self, part: Part, placed: Mapping[str, Placement]) -> dict[str, Any]:
        """Quantize the output head, tied or not, on what the final norm makes of the last block's outputs."""
        (name,) = part.tensors
        hidden = self._hidden(self._model.num_blocks)
        self._require_whole(hidden)
        path = name.removesuffix(".weight")
        matrix = self._weights.read(name).float().contiguous()
        seen = self._observe_head(hidden)
        if path == self._model.family.embeddings:
            seen.count_lookups()
        work = BlockWork("", {path: matrix}, {}, {path: seen}, {path: placed[name]})
        # nothing before a head can be scaled where it is tied, but a Hessian that AWQ looks at serves GPTQ
        method = Gptq() if isinstance(self._method, Awq) else self._method
        entry, linear = _round_one(method, name, path, work)
        error, total = squares(matrix.numpy(), entry.back)
        told = [text for text in (placed[name].fallback, *work.told) if text]
        facts = {"error": error, "total": total, "fallbacks": told, "linears": {name: linear}, "exponents": {}}
        return self._work.finish(part, entry.entries, facts)

    def _observe_head(self, hidden: HiddenStates) -> InputStatistics:
        seen = InputStatistics(self._shape[2], hessian=needs_hessian(self._method))
        with self._model.final_norm() as norm, torch.inference_mode():
            for rows in batches(*self._shape[:2]):
                interrupt.check()
                seen.add(norm(hidden.read(rows)[self._text.scored(rows)]))
        return seen

    def _require_whole(self, hidden: HiddenStates) -> None:
        if not hidden.whole:
            raise InputError(
                "is not what the stopped run left there",
                where=str(hidden.path),
                next_step=f"delete {self._work.folder}, and start again",
            )

    def _hidden(self, block: int) -> HiddenStates:
        return HiddenStates(self._work.folder / f"hidden-{block:05d}.f32", self._shape)

    def _begin(self, block: int, hidden: HiddenStates) -> None:
        """Embed the text for the first block; later ones find what the block before them left."""
        for other in self._work.folder.glob("hidden-*.f32"):
            if other != hidden.path:
                other.unlink()
        if block:
            self._model.embed(self._text.tokens_NT, None)
            self._require_whole(hidden)
        else:
            self._model.embed(self._text.tokens_NT, hidden)
        self._begun = True

    def _observe(self, block: int, hidden: HiddenStates) -> Observer:
        prefix = self._model.prefix(block)
        linears = {name.removeprefix(prefix): module for name, module in self._model.linears(block).items()}
        linears = {name.removesuffix(".weight"): module for name, module in linears.items()}
        observer = Observer(linears, hessian=needs_hessian(self._method))
        try:
            for rows in batches(*self._shape[:2]):
                interrupt.check()
                observer.scored_BT = self._text.scored(rows)
                self._model.run(block, hidden, rows)
                observer.forget_tensors()
        finally:
            observer.close()
        return observer

    def _round(
        self, block: int, tensors: Mapping[str, Tensor], placed: Mapping[str, Placement], observer: Observer
    ) -> tuple[dict[str, Encoded], dict[str, Any]]:
        prefix, config = self._model.prefix(block), self._weights.config
        paths = {name: name.removeprefix(prefix).removesuffix(".weight") for name in self._model.linears(block)}
        matrices = {
            path: tensors[name].T.contiguous() if inputs_first(config, name) else tensors[name].clone()
            for name, path in paths.items()
        }
        vectors = {name.removeprefix(prefix): tensors[name].clone() for name in tensors if name not in paths}
        work = BlockWork(prefix, matrices, vectors, observer.of, {path: placed[name] for name, path in paths.items()})
        columns = {path: matrix.shape[1] for path, matrix in matrices.items()}
        rows = {path: matrix.shape[0] for path, matrix in matrices.items()}
        folds = folds_of(str(config["model_type"]), columns, rows)
        exponents = scale_inputs(self._method, work, folds)
        entries: dict[str, Encoded] = {}
        linears: dict[str, Any] = {}
        error = total = 0.0
        for name, path in paths.items():
            interrupt.check()
            entries[name], linears[name] = _round_one(self._method, name, path, work)
            missed, size = squares(matrices[path].numpy(), entries[name].back)
            error, total = error + missed, total + size
            if inputs_first(config, name):
                entries[name] = Encoded(entries[name].entries, np.ascontiguousarray(entries[name].back.T))
        for name, vector in vectors.items():
            grid = placed[prefix + name].grid
            entries[prefix + name] = to_float(prefix + name, vector.numpy(), grid)
        told = [text for name in tensors if (text := placed[name].fallback)]
        told += work.told
        facts = {"error": error, "total": total, "fallbacks": told, "linears": linears, "exponents": exponents}
        return entries, facts

    def _round_activations(self, block: int, placed: Mapping[str, Placement]) -> list[Any]:
        """In a W8A8 scheme, let the block's linears with a scale per row see rounded inputs, as the runtime will."""
        if not self._integer_products:
            return []
        linears = self._model.linears(block)
        return [round_inputs(linears[name]) for name in linears if placed[name].grid == grid_of(Int8Channel())]


def _round_one(method: Calibrated, name: str, path: str, work: BlockWork) -> tuple[Encoded, dict[str, Any]]:
    """A linear on its grid, by the method where that has codes, and what there is to tell of it."""
    grid = work.placed[path].grid
    if grid.name not in {*CODED, "q3_k", "q2_k"}:
        return to_float(name, work.matrices[path].numpy(), grid), {"tokens": work.seen[path].tokens}
    made, facts = round_linear(method, work, path)
    return encode_coded(name, made) if isinstance(made, CodedTensor) else encode_blocks(name, made), facts


class _Zeros(dict[str, int]):
    """Every linear alike: enough to ask whether a family has folds at all."""

    def __missing__(self, _name: str) -> int:
        return 0


def _assign(module: nn.Module, weights: Mapping[str, NDArray[np.float32]], prefix: str) -> None:
    state = {name.removeprefix(prefix): torch.from_numpy(weight) for name, weight in weights.items()}
    module.load_state_dict(state, strict=True, assign=True)
