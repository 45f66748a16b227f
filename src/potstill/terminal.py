"""What a run looks like in a terminal while it works: bars, a line a stage, warnings between.

Two listeners of the trace: one for a terminal, one that writes plain lines for logs. Texts, tokens and names come from
files that anybody may have written, so none is read as markup and no control character reaches the terminal.
"""

import os
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self, TextIO

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID
from rich.text import Text

from potstill.core.trace import Event, sentence_of

__all__ = [
    "MISSING",
    "LiveListener",
    "PlainListener",
    "console_for",
    "count",
    "listening",
    "megabytes",
    "stage_line",
    "stage_name",
    "visible",
]

PLAIN_PROGRESS_EVERY_S = 10.0
_CHECK, _CACHED, _WARNING = "✓", "=", "!"
MISSING = "-"
_WIDTH_OF_FILES = 120


def visible(text: object) -> str:
    r"""``text`` on one line with every control, format and direction character spelled out, as in ``\x1b``."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
        else character
        for character in str(text)
    )


def visible_lines(text: str) -> str:
    """The same for a text of several lines, which stay lines."""
    return "\n".join(visible(line) for line in text.split("\n"))


def console_for(stream: TextIO) -> Console:
    """A console that reads no markup, no emoji codes and highlights nothing; it honours ``NO_COLOR``."""
    width = None if stream.isatty() or "COLUMNS" in os.environ else _WIDTH_OF_FILES
    return Console(file=stream, width=width, markup=False, emoji=False, highlight=False, soft_wrap=False)


@contextmanager
def listening(stream: TextIO) -> Iterator[Callable[[Event], None]]:
    """A listener that suits ``stream``: bars on a terminal, plain lines elsewhere."""
    console = console_for(stream)
    if console.is_terminal and not console.is_dumb_terminal:
        with LiveListener(console) as listener:
            yield listener
    else:
        yield PlainListener(stream)


class LiveListener:
    """Bars with rate and time left for the work in hand; a line for every stage that ended, warnings between."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._number = self._note = self._what = ""
        self._task: TaskID | None = None
        self._progress = Progress(*_columns(console.width), console=console, transient=True, expand=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        kind, value = event["kind"], event["value"]
        if kind == "stage_start":
            self._number = f"{value['number']}/{value['of']}"
            if not value["cached"]:
                self._advance(stage_name(event["stage"]), {"done": 0, "total": None}, "")
        elif kind == "progress":
            self._advance(visible(event["name"]), value, visible(event.get("unit") or ""))
        elif kind == "stage_end":
            self._end(stage_name(event["stage"]), value)
        elif kind == "note" and event.get("model") == stage_name(event["stage"]):
            self._note = _observation(event)
        elif kind in {"warning", "fallback"}:
            line = Text.assemble((f"{_WARNING} ", "bold yellow"), (f"{kind}: ", "yellow"), visible(sentence_of(event)))
            self._console.print(line)

    def _advance(self, what: str, value: Mapping[str, Any], unit: str) -> None:
        """Show how far ``what`` is in the one bar there is; other work than before starts bar and rate anew."""
        if self._task is None or what != self._what:
            self._remove_bar()
            self._what = what
            self._task = self._progress.add_task(what, total=value["total"], what=what, unit=unit)
        self._progress.update(self._task, completed=value["done"], total=value["total"], unit=unit)

    def _remove_bar(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._progress.refresh()
            self._task = None

    def _end(self, name: str, value: Mapping[str, Any]) -> None:
        self._remove_bar()
        mark = (f"{_CACHED} ", "dim") if value["cached"] else (f"{_CHECK} ", "bold green")
        self._console.print(Text.assemble(mark, stage_line(self._number, name, value)))
        if self._note and not value["cached"]:
            self._console.print(Padding(Text(self._note, style="dim"), (0, 0, 0, 4)))
        self._note = ""


class PlainListener:
    """One line per event that matters, for logs and pipes; of progress at most one line in ten seconds."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._number = ""
        self._last_progress_s = clock()

    def __call__(self, event: Event) -> None:
        """Write one event."""
        kind, value = event["kind"], event["value"]
        if kind == "stage_start":
            self._number = f"{value['number']}/{value['of']}"
            if not value["cached"]:
                self._write(f"{self._number} {stage_name(event['stage'])} ...")
        elif kind == "stage_end":
            self._write(stage_line(self._number, stage_name(event["stage"]), value))
        elif kind == "progress" and self._clock() - self._last_progress_s >= PLAIN_PROGRESS_EVERY_S:
            self._last_progress_s = self._clock()
            done_of = _done_of(value["done"], value["total"])
            self._write(f"    {visible(event['name'])}: {done_of} {visible(event.get('unit') or '')}")
        elif kind == "note":
            self._write(f"    {_observation(event)}")
        elif kind in {"warning", "fallback"}:
            self._write(f"{kind}: {visible(sentence_of(event))}")

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


def stage_name(directory: str) -> str:
    """``student`` for the stage that keeps its work in ``04-student``."""
    return visible(directory).lstrip("0123456789-")


def stage_line(number: str, name: str, value: Mapping[str, Any]) -> str:
    """``4/8 student      61.2 s     512 MB``: what a stage that ended cost."""
    cost = "cached" if value["cached"] else f"{value['seconds']:8.1f} s {megabytes(value['peak_memory_bytes']):>8} MB"
    return f"{number} {name:<9} {cost:>20}"


def count(value: float | None) -> str:
    """A number of things in four characters or so: ``512``, ``9.4k``, ``3.10M``, ``175B``."""
    if value is None:
        return MISSING
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            scaled = value / size
            return f"{scaled:.0f}{letter}" if scaled >= 100 else f"{scaled:.3g}{letter}"
    return f"{value:.3g}"


def megabytes(value: float | None) -> str:
    """A number of bytes in millions of them, without the unit."""
    if value is None:
        return MISSING
    scaled = value / 1e6
    return f"{scaled:,.0f}" if scaled >= 100 else f"{scaled:.1f}" if scaled >= 10 else f"{scaled:.2f}"


def _observation(event: Event) -> str:
    """A note's sentence, after the model and the epoch that it speaks of."""
    about = [visible(event[tag]) for tag in ("model", "epoch") if tag in event]
    place = " epoch ".join(about) + ": " if about else ""
    return place + visible(event["value"])


def _done_of(done: float, total: float | None) -> str:
    return f"{done:,.0f}" if total is None else f"{done:,.0f} of {total:,.0f}"


def _columns(width: int) -> list[ProgressColumn]:
    bar_width = max(8, min(40, width - 62))
    return [
        _What(),
        BarColumn(bar_width=bar_width),
        _Percent(),
        _Rate(),
        _Left(),
    ]


class _What(ProgressColumn):
    """What is being worked on."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["what"][:30].ljust(18), style="bold")


class _Percent(ProgressColumn):
    """How much is done, where the end is known."""

    def render(self, task: Task) -> Text:
        return Text("" if task.total is None else f"{task.percentage:>3.0f}%")


class _Rate(ProgressColumn):
    """How fast it goes: ``6.4k tokens/s``."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if not speed else f"{count(speed)} {task.fields['unit']}/s".rjust(14), style="cyan")


class _Left(ProgressColumn):
    """How long it still takes, or has taken where the end isn't known."""

    def render(self, task: Task) -> Text:
        if task.total is None or task.time_remaining is None:
            return Text(f"{_clock_time(task.elapsed or 0)} so far", style="dim")
        return Text(f"{_clock_time(task.time_remaining)} left")


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
