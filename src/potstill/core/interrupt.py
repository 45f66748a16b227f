"""Stopping when asked: SIGINT and SIGTERM set a flag that long loops look at between two steps of work."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from potstill.core.errors import Interrupted

__all__ = ["check", "received", "requested", "watching"]

_received: list[int] = []


@contextmanager
def watching(*, launched: bool = False) -> Iterator[None]:
    """Turn SIGINT and SIGTERM into a request that ``check`` answers; a second signal stops at once, as always.

    A process that was ``launched`` with others stays with the request: schedulers and launchers each pass a signal on,
    and a launcher kills by itself what doesn't end.
    """
    _received.clear()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def remember(number: int, _frame: FrameType | None) -> None:
        _received.append(number)
        if not launched:
            signal.signal(number, before[signal.Signals(number)])

    for number in signals:
        signal.signal(number, remember)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received.clear()


def requested() -> bool:
    """Whether a signal asked for a stop."""
    return bool(_received)


def received() -> int:
    """The number of the signal that asked for a stop; 0 if none did."""
    return _received[0] if _received else 0


def check() -> None:
    """Stop here if a signal asked for it.

    Raises: Interrupted: carrying the signal's number.
    """
    if _received:
        raise Interrupted(_received[0])
