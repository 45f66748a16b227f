"""The processes that do one run together: which one this is, and how it speaks with the others.

``torchrun`` starts them and says so in the environment. A process alone is a world of one, in which every question
answers itself: nothing of torch's distributed machinery is imported, and sums are what was given.

Words go through torchrun's key-value store: who waits for one looks again and again, so signals are heard and the end
of another process is noticed. Numbers go through the process group: gloo between CPUs, nccl between GPUs.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal

from potstill.core import interrupt
from potstill.core.errors import BugError, Interrupted, PeerError, PotstillError, RecipeError, ResourceError

__all__ = ["SOLO", "World", "current", "joined", "launched_as"]

_PATIENCE = timedelta(hours=1)
"""How long a collective waits for the slowest process; what may take longer is waited for through the store."""

_GRACE_S = 20.0
"""How long to go on waiting for the others once a stop was asked for; torchrun kills after 30 s."""

_SHORTEST_NAP_S, _LONGEST_NAP_S = 0.001, 0.1
_FAILURE = "failure"
_LOST = -1


class World:
    """One process among ``size``, numbered from 0; the first leads: it alone tells, prints and writes what is shared.

    Every method but ``tell`` and ``hear`` is called by all processes, in the same order.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None) -> None:  # noqa: ANN401 - torch isn't imported
        self.rank = rank
        self.size = size
        self._store = store
        self._num_gathered = 0

    @property
    def leads(self) -> bool:
        """Whether this is the process that speaks for all."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the processes, in float64; all get the same bits."""
        return self._reduced(values, "SUM")

    def largest(self, values: Sequence[float]) -> list[float]:
        """The largest of each value over the processes."""
        return self._reduced(values, "MAX")

    def gather(self, text: str = "", *, stoppable: bool = False) -> list[str]:
        """What every process says here, in their order; nobody goes on before all have come.

        Raises: PeerError: another process ended. Interrupted: with ``stoppable``, a signal came.
        """
        if self.size == 1:
            return [text]
        self._num_gathered += 1
        keys = [f"gathered {self._num_gathered} {rank}" for rank in range(self.size)]
        self._store.set(keys[self.rank], text)
        self._await(keys, stoppable=stoppable)
        return [self._store.get(key).decode() for key in keys]

    def tell(self, name: str, text: str) -> None:
        """Leave a word that the others ``hear``."""
        if self.size > 1:
            self._store.set(f"told {name}", text)

    def hear(self, name: str) -> str:
        """Wait for a word, for as long as it takes.

        Raises: PeerError: another process ended. Interrupted: a signal came.
        """
        if self.size == 1:
            raise BugError(f"a process alone waits for {name!r}")
        self._await([f"told {name}"], stoppable=True)
        text: str = self._store.get(f"told {name}").decode()
        return text

    def end(self, error: BaseException) -> BaseException:
        """Say that this process ends with ``error``; returns what it ends with, ``PeerError`` if another was first."""
        lost = _is_loss_of_a_peer(error)
        mine = f"{_LOST if lost else self.rank} {_exit_code_of(error)}"
        try:
            first: str = self._store.compare_set(_FAILURE, "", mine).decode()
        except RuntimeError:  # the store's process is gone too
            return self._peer_error(mine) if lost else error
        if isinstance(error, Interrupted | PeerError) or (first == mine and not lost):
            return error
        return self._peer_error(first)

    def _reduced(self, values: Sequence[float], how: str) -> list[float]:
        if self.size == 1:
            return list(values)
        import torch
        from torch import distributed

        numbers = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(numbers, op=getattr(distributed.ReduceOp, how))
        reduced: list[float] = numbers.tolist()
        return reduced

    def _await(self, keys: list[str], *, stoppable: bool) -> None:
        nap_s, asked_at = _SHORTEST_NAP_S, None
        while not self._store.check(keys):
            if self._store.check([_FAILURE]):
                raise self._peer_error(self._store.get(_FAILURE).decode())
            if stoppable:
                interrupt.check()
            if interrupt.requested():
                asked_at = asked_at or time.monotonic()
                if time.monotonic() - asked_at > _GRACE_S:
                    raise self._peer_error(f"{_LOST} 1")
            time.sleep(nap_s)
            nap_s = min(nap_s * 1.5, _LONGEST_NAP_S)

    def _peer_error(self, failure: str) -> PeerError:
        rank, code = (int(part) for part in failure.split())
        if rank == _LOST:
            what = f"another of the {self.size} processes of this run was killed or can't be reached"
            return PeerError(what, code, next_step="see what ended it; the same command goes on from the checkpoint")
        what = f"process {rank} of the {self.size} of this run ended with exit code {code}"
        return PeerError(what, code, next_step="its own message says why")


SOLO = World()
"""A process alone."""

_joined: list[World] = []


def current() -> World:
    """The world that this process has joined, or is by itself."""
    return _joined[-1] if _joined else SOLO


def launched_as() -> tuple[int, int]:
    """This process's rank and the number of processes, as torchrun says them in the environment; else (0, 1).

    Raises: RecipeError: the environment says one and not the other.
    """
    try:
        size = int(os.environ.get("WORLD_SIZE", "1"))
        return (int(os.environ["RANK"]), size) if size > 1 else (0, 1)
    except (KeyError, ValueError) as error:
        raise RecipeError(
            "WORLD_SIZE in the environment promises several processes, but RANK doesn't say which one this is",
            next_step="start with torchrun, or unset WORLD_SIZE",
        ) from error


@contextmanager
def joined(device: Literal["auto", "cpu", "cuda"] = "auto") -> Iterator[World]:
    """Join the other processes that torchrun started, and leave them at the end; alone, do nothing.

    Each process takes the GPU of its local rank, unless ``device`` is "cpu" or there is none.

    Raises: PeerError: instead of what a process ends with because another one ended before.
    """
    rank, size = launched_as()
    if size == 1:
        yield SOLO
        return
    world = _join(rank, size, device)
    _joined.append(world)
    try:
        yield world
    except BaseException as error:
        ends_with = world.end(error)
        if ends_with is error:
            raise
        raise ends_with from error
    else:
        from torch import distributed

        distributed.destroy_process_group()
    finally:
        _joined.clear()


def _join(rank: int, size: int, device: str) -> World:
    import torch
    from torch import distributed
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    backend = "gloo"
    if device != "cpu" and torch.cuda.is_available():
        local_rank, num_gpus = int(os.environ.get("LOCAL_RANK", rank)), torch.cuda.device_count()
        if local_rank >= num_gpus:
            raise ResourceError(
                f"process {rank} finds no GPU of its own: there are {num_gpus} here",
                next_step=f"start at most {num_gpus} processes on each machine, or set device=cpu",
            )
        torch.cuda.set_device(local_rank)
        backend = "cpu:gloo,cuda:nccl"
    store, _, _ = next(rendezvous("env://", timeout=_PATIENCE))
    distributed.init_process_group(
        backend, store=PrefixStore("group", store), rank=rank, world_size=size, timeout=_PATIENCE
    )
    return World(rank, size, PrefixStore("potstill", store))


def _exit_code_of(error: BaseException) -> int:
    return error.process_exit_code if isinstance(error, PotstillError) else 1


def _is_loss_of_a_peer(error: BaseException) -> bool:
    """Whether a collective or the store failed: DistBackendError, DistNetworkError and so on, or gloo's own words."""
    return isinstance(error, RuntimeError) and (type(error).__name__.startswith("Dist") or "gloo" in str(error).lower())
