"""What can go wrong, told to the person who can put it right.

```
PotstillError            exit code
├── BugError              1   potstill itself is wrong
├── RecipeError           2   usage or recipe
├── InputError            3   data or artefact: unreadable, damaged, foreign
├── ResourceError         4   memory, disk, permissions, a missing extra
├── RemoteError           5   a hub or a remote teacher
├── QualityGateError      6   a quality gate failed
├── RunDirectoryError     7   the run directory is busy, or holds another recipe
├── PeerError             …   another process of the run ended before; its exit code
└── Interrupted         130   SIGINT (143: SIGTERM); the work so far is in a checkpoint
```
"""

from typing import ClassVar

__all__ = [
    "BugError",
    "InputError",
    "Interrupted",
    "PeerError",
    "PotstillError",
    "QualityGateError",
    "RecipeError",
    "RemoteError",
    "ResourceError",
    "RunDirectoryError",
]


class PotstillError(Exception):
    """An error for people: what happened, where, and what to do next.

    Every subclass fixes the exit code that the command line answers with.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str | None = None, next_step: str | None = None) -> None:
        self.what = what
        self.where = where
        self.next_step = next_step
        super().__init__(what, where, next_step)

    @property
    def process_exit_code(self) -> int:
        """What a process that ends with this error exits with."""
        return self.exit_code

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f"\n  → {self.next_step}" if self.next_step else ""
        return f"{place}{self.what}{advice}"


class BugError(PotstillError):
    """An invariant of potstill's own is broken."""


class RecipeError(PotstillError):
    """The recipe or the command line asks for something that doesn't exist or can't be done."""

    exit_code = 2


class InputError(PotstillError):
    """Input data or an artefact is missing, damaged, or belongs to something else."""

    exit_code = 3


class ResourceError(PotstillError):
    """Memory, disk, permissions, or an optional package is missing."""

    exit_code = 4


class RemoteError(PotstillError):
    """A hub or a remote teacher didn't answer, or answered with an error."""

    exit_code = 5


class QualityGateError(PotstillError):
    """A measured quality is worse than the gate that was set for it."""

    exit_code = 6


class RunDirectoryError(PotstillError):
    """The run directory is in use by another process, or was made by another recipe."""

    exit_code = 7


class PeerError(PotstillError):
    """Another process of the same run ended, so this one can't go on; it ends with the same exit code."""

    def __init__(self, what: str, peer_exit_code: int, *, next_step: str | None = None) -> None:
        super().__init__(what, next_step=next_step)
        self._peer_exit_code = peer_exit_code

    @property
    def process_exit_code(self) -> int:
        """The other process's."""
        return self._peer_exit_code


class Interrupted(PotstillError):  # noqa: N818 - a stop that was asked for is no error
    """A signal asked for a stop; a checkpoint was written first."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(
            "stopped; the work so far is in a checkpoint",
            next_step="the same command goes on from there",
        )
        self.signal_number = signal_number

    @property
    def process_exit_code(self) -> int:
        """128 + the signal's number, as shells report it."""
        return 128 + self.signal_number
