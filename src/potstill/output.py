"""How results and words leave the command line: results to stdout, everything else to stderr."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from potstill.core.errors import QualityGateError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["print_line", "print_tree_of", "require_nothing_told", "show_result", "summary_printer", "tell"]

BROKEN_PIPE = 141


def show_result(result: Any, *, as_json: bool, printer: Callable[["Console", Any], None]) -> None:  # noqa: ANN401 - JSON
    if as_json:
        import json  # noqa: PLC0415

        print_line(json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False))
        return
    from potstill.terminal import console_for  # noqa: PLC0415

    with _pipe_may_break():
        printer(console_for(sys.stdout), result)
        sys.stdout.flush()


def require_nothing_told(summary: Mapping[str, Any], directory: Path) -> None:
    """Refuse a run that had to warn or to do something in another way than asked for.

    Raises: QualityGateError: saying how many warnings and fallbacks there are.
    """
    if summary["warnings"] or summary["fallbacks"]:
        found = f"{len(summary['warnings'])} warnings and {len(summary['fallbacks'])} fallbacks"
        raise QualityGateError(f"{found}, where --strict allows none", where=str(directory))


def summary_printer(*, stages: bool) -> Callable[["Console", Any], None]:
    from potstill.tables import print_summary  # noqa: PLC0415

    return lambda console, summary: print_summary(console, summary, stages=stages)


def print_tree_of(console: "Console", facts: Any) -> None:  # noqa: ANN401 - JSON values
    from potstill.tables import print_tree  # noqa: PLC0415

    print_tree(console, facts)


def print_line(text: str) -> None:
    with _pipe_may_break():
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def tell(text: str) -> None:
    """Write to stderr, where what is no result belongs."""
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(text + "\n")


@contextlib.contextmanager
def _pipe_may_break() -> Iterator[None]:
    """Stop quietly, as programs in a pipe do, when nobody reads stdout any more."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(BROKEN_PIPE) from None
