"""Run a model block by block, with no more than one block's weights in memory.

The model is built without weights; a block gets its own when its turn comes. What lies between two blocks, the hidden
states of the whole text, stands in a file, so that a killed run goes on from there.

Shapes: N rows, B rows of a batch, T tokens, D width.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from potstill.core import interrupt
from potstill.core.errors import InputError
from potstill.model.anatomy import FAMILIES, Family, logits_of
from potstill.model.quiet import quiet_transformers
from potstill.model.weights import OTHER_NAMES, Weights
from potstill.quantize.memory import TOKENS_PER_BATCH

__all__ = ["HiddenStates", "StreamedModel", "batches"]


class HiddenStates:
    """float32 [N, T, D] in a file, read and written by rows."""

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        self.path = path
        self.shape = shape
        self._row_bytes = shape[1] * shape[2] * 4

    def read(self, rows: slice) -> Tensor:
        """Rows [B, T, D], aligned as PyTorch does: on the alignment of its arguments hang the last bits of a sum."""
        states_BTD = torch.empty(rows.stop - rows.start, *self.shape[1:])
        with self.path.open("rb") as file:
            file.seek(rows.start * self._row_bytes)
            file.readinto(states_BTD.numpy().data)
        return states_BTD

    @contextmanager
    def writing(self) -> Iterator[Any]:
        """A function that appends rows; what it wrote is on disk when the block ends."""
        with self.path.open("wb") as file:
            yield lambda rows_BTD: rows_BTD.float().contiguous().numpy().tofile(file)
            file.flush()
            os.fsync(file.fileno())

    @property
    def whole(self) -> bool:
        """Whether all rows are there."""
        return self.path.is_file() and self.path.stat().st_size == self.shape[0] * self._row_bytes


class StreamedModel:
    """A causal LM of a plain directory without its weights, whose blocks can be filled and run one at a time.

    With ``bfloat16`` a block's matrix products are computed in it; hidden states between blocks are float32 always.

    Raises: InputError: the family isn't in ``FAMILIES``, or transformers doesn't know the config.
    """

    def __init__(self, weights: Weights, *, bfloat16: bool) -> None:
        model_type = str(weights.config["model_type"])
        if model_type not in FAMILIES:
            raise InputError(
                f"is of the family {model_type!r}, whose parts potstill doesn't know, so no text can be read block by "
                "block",
                where=str(weights.directory),
                next_step=f"use method: rtn, or a model of one of {', '.join(FAMILIES)}",
            )
        self.family: Family = FAMILIES[model_type]
        self._weights = weights
        self._bfloat16 = bfloat16
        self._model = _without_weights(weights.directory)
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._blocks = list(self._model.get_submodule(self.family.blocks).children())

    @property
    def num_blocks(self) -> int:
        """How many blocks there are."""
        return len(self._blocks)

    def linears(self, block: int) -> dict[str, nn.Module]:
        """The block's linears by the names of their weights in the files."""
        inside = self._blocks[block]
        return {
            f"{self.prefix(block)}{path}.weight": inside.get_submodule(path) for path in self.family.linears.values()
        }

    @cached_property
    def head(self) -> str | None:
        """The name in the files of the weight that makes logits of hidden states, the embeddings' where both are one.

        None where something other than the final norm stands between the last block and it.
        """
        modules = dict(self._model.named_modules())
        if getattr(modules[self.family.decoder], "project_out", None) is not None or self.family.norm not in modules:
            return None
        head = self._model.get_output_embeddings()
        own = next(f"{name}.weight" for name, module in modules.items() if module is head)
        return own if own in self._weights.names else f"{self.family.embeddings}.weight"

    @property
    def width(self) -> int:
        """D."""
        config = self._weights.config
        return int(config.get("hidden_size") or config["n_embd"])

    def prefix(self, block: int) -> str:
        """How names of a block's tensors begin."""
        return f"{self.family.blocks}.{block}."

    def embed(self, tokens_NT: NDArray[np.int64], into: HiddenStates | None) -> None:
        """Write what the first block reads, and learn how blocks are called; embeddings are in memory meanwhile.

        Blocks are called with the same positions and masks for every row, so one row is enough to learn that; None
        for ``into`` does nothing else.
        """
        with self._in_memory(f"{self.family.decoder}."), torch.inference_mode():
            if into is not None:
                with into.writing() as write:
                    for rows in batches(*tokens_NT.shape):
                        interrupt.check()
                        write(self._record(tokens_NT[rows]))
            self._record(tokens_NT[:1])

    def fill(self, block: int, state: Mapping[str, Tensor]) -> nn.Module:
        """Give a block its weights, by their names in the files, and return it.

        Raises: InputError: the files lack one of them.
        """
        prefix = self.prefix(block)
        module: nn.Module = self._blocks[block]
        own = {name.removeprefix(prefix): tensor.float() for name, tensor in state.items()}
        missing, unexpected = module.load_state_dict(own, strict=False, assign=True)
        if missing or unexpected:
            raise InputError(
                f"block {block} doesn't hold the tensors of its config.json: {', '.join([*missing, *unexpected])}",
                where=str(self._weights.directory),
            )
        module.eval()
        return module

    def empty(self, block: int) -> None:
        """Take a block's weights away again."""
        self._blocks[block].to("meta")

    def run(self, block: int, hidden: HiddenStates, rows: slice) -> Tensor:
        """The block's outputs [B, T, D] for rows of the hidden states."""
        arguments, named = self._calls[block]
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._bfloat16):
            output = self._blocks[block](hidden.read(rows), *arguments, **named)
        states_BTD: Tensor = output[0] if isinstance(output, tuple) else output
        return states_BTD

    def pass_on(self, block: int, hidden: HiddenStates, after: HiddenStates) -> None:
        """Write what the block makes of all rows."""
        with after.writing() as write:
            for rows in batches(*hidden.shape[:2]):
                interrupt.check()
                write(self.run(block, hidden, rows))

    @contextmanager
    def final_norm(self) -> Iterator[nn.Module]:
        """The norm between the last block and the head; its weights are in memory meanwhile."""
        with self._in_memory(f"{self.family.norm}."):
            yield self._model.get_submodule(self.family.norm)

    @contextmanager
    def read_out(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """A function from the last block's outputs [P, D] to logits [P, V]; norm and head are in memory meanwhile."""

        def logits(states_PD: Tensor) -> Tensor:
            with torch.inference_mode():
                return logits_of(self._model, self._model.get_submodule(self.family.norm)(states_PD))

        with self._in_memory(""):
            yield logits

    @contextmanager
    def _in_memory(self, prefix: str) -> Iterator[None]:
        """Tensors outside of the blocks whose names begin so have values meanwhile; where all have, a tied head too."""
        outside = [name for name in self._weights.names if not name.startswith(f"{self.family.blocks}.")]
        names = {name: OTHER_NAMES.get(name, name) for name in outside if name.startswith(prefix)}
        state = {own: self._weights.read(name).float() for name, own in names.items()}
        if not prefix:
            state.setdefault("lm_head.weight", state[f"{self.family.embeddings}.weight"])
        self._model.load_state_dict(state, strict=False, assign=True)
        try:
            yield
        finally:
            empty = {name: tensor.to("meta") for name, tensor in state.items()}
            self._model.load_state_dict(empty, strict=False, assign=True)

    def _record(self, tokens_BT: NDArray[np.int64]) -> Tensor:
        """Run the decoder with blocks that only note how they are called; returns what the first one reads."""
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        entered: list[Tensor] = []

        def note(hidden_BTD: Tensor, *arguments: Any, **named: Any) -> Tensor:  # noqa: ANN401 - a block's own
            entered.append(hidden_BTD)
            calls.append((arguments, named))
            if len(calls) == self.num_blocks:
                raise _AllCalled
            return hidden_BTD

        forwards = [block.forward for block in self._blocks]
        for block in self._blocks:
            block.forward = note
        try:
            self._model.get_submodule(self.family.decoder)(input_ids=torch.from_numpy(tokens_BT), use_cache=False)
        except _AllCalled:
            pass
        finally:
            for block, forward in zip(self._blocks, forwards, strict=True):
                block.forward = forward
        self._calls = calls
        return entered[0]


class _AllCalled(Exception):  # noqa: N818 - no error: the decoder has nothing more to tell
    pass


def batches(num_rows: int, num_tokens: int) -> Iterator[slice]:
    """The rows that go through a block at once."""
    step = max(1, TOKENS_PER_BATCH // num_tokens)
    return (slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step))


def _without_weights(directory: Path) -> Any:  # noqa: ANN401 - a transformers model, whose package is untyped
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415 - seconds, where only this needs it

    auto: Any = AutoModelForCausalLM
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    with quiet_transformers(), _parameters_on_meta(), torch.random.fork_rng(devices=[]):
        return auto.from_config(config, dtype=torch.float32).eval()


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules made inside get parameters without memory; buffers, which no file holds, are made as always."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        empty = None if parameter is None else nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, empty)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
