"""One model that all processes of a run train together: each batch is split over them by rows.

The gradient is that of the mean over the scored positions of the whole batch, whichever process computed which rows,
so the number of processes changes nothing but the rounding of sums. Alone, a process does just what it always did.

DDP keeps the whole model, its gradients and moments in every process and sums gradients once a batch. FSDP2 keeps a
share of all three in each and sums after every micro-batch, for whole gradients kept between them are the memory that
it is there to save.

Shapes: B rows of a batch.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.core.world import World
from potstill.model.anatomy import blocks
from potstill.train.settings import ParallelKind

__all__ = ["Parallel"]


class Parallel:
    """The processes' common hold on a model.

    ``model`` is the one to compute with and to optimise: the one given, or with FSDP2 a copy of it that is sharded.
    """

    def __init__(self, model: PreTrainedModel, kind: ParallelKind, world: World) -> None:
        self._world = world
        self.is_sharded = world.size > 1 and kind == "fsdp"
        device = model.device.type
        self.model = copy.deepcopy(model.cpu()) if self.is_sharded else model  # the one given waits for the result
        self._inside: nn.Module = _Inside(self.model)
        if self.is_sharded:
            _shard(self._inside, self.model, device)
        elif world.size > 1:
            self._inside = nn.parallel.DistributedDataParallel(self._inside)

    @property
    def in_words(self) -> str:
        """Who keeps what of the model."""
        if self._world.size == 1:
            return "one process, which keeps the whole model"
        kept = "its share of the model (FSDP2)" if self.is_sharded else "the whole model (DDP)"
        return f"{self._world.size} processes, each of which keeps {kept}"

    def accumulate_gradients(
        self,
        loss_sum: Callable[[NDArray[np.int64]], Tensor],
        rows_B: NDArray[np.int64],
        *,
        most_rows: int,
        num_positions: int,
    ) -> float:
        """Backward of ``loss_sum(rows) / num_positions`` over all rows, at most ``most_rows`` of them at once.

        A process without rows of its own takes part with a loss of zero: the others' collectives need it.

        Returns: the loss summed over the rows of all processes.
        """
        world = self._world
        num_micro = math.ceil(math.ceil(len(rows_B) / world.size) / most_rows)
        total = 0.0
        for number, micro_B in enumerate(np.array_split(rows_B[world.rank :: world.size], num_micro), start=1):
            with self._summing_gradients(number == num_micro):
                loss = self._inside(loss_sum, micro_B if len(micro_B) else rows_B[:1])
                if not len(micro_B):
                    loss = 0.0 * loss
                # DDP and FSDP2 average over the processes where a sum is wanted.
                (loss / (max(num_positions, 1) / world.size)).backward()
            total += float(loss.detach())
        return world.sum([total])[0]

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Let the model's parts be called one by one without gradients; all processes call them equally often."""
        if not self.is_sharded:
            yield
            return
        sharded = cast("Any", self._inside)  # fully_shard gives the module these two methods
        sharded.unshard()
        try:
            yield
        finally:
            sharded.reshard()

    def _summing_gradients(self, now: bool) -> AbstractContextManager[None]:
        if isinstance(self._inside, nn.parallel.DistributedDataParallel) and not now:
            return self._inside.no_sync()
        return nullcontext()


class _Inside(nn.Module):
    """A module whose forward is any computation with its model: DDP and FSDP2 act where a forward begins and ends."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[NDArray[np.int64]], Tensor], rows_B: NDArray[np.int64]) -> Tensor:
        return compute(rows_B)


def _shard(inside: nn.Module, model: PreTrainedModel, device: str) -> None:
    """Split the parameters of each block over all processes, and what is left (embeddings, norm, head) as one more.

    Each unit is moved to the device and split there before the next, so the whole model is never on one GPU.
    """
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415 - only where processes are many
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    for block in blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(inside, mesh=mesh)
