"""The trace: one JSON object a line for everything a stage tells about itself.

A stage is handed a ``Trace`` and never prints. The terminal and the report are readers of the same events. Events are
appended and flushed one by one, so a killed run keeps its trace; a torn last line is tolerated on reading.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from potstill.core.errors import InputError

__all__ = ["Event", "Trace", "num_fallbacks", "read_trace", "sentence_of", "texts_told"]

Event = Mapping[str, Any]
"""``time`` (ISO 8601), ``stage``, ``kind``, ``name``, ``value``, ``unit``, and any further tags."""


class Trace:
    """Where a stage tells what it does: metrics with units, examples, tables, warnings, fallbacks, progress.

    Every event but progress is appended to ``path``; listeners hear all of them.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        stage: str = "",
        listeners: Sequence[Callable[[Event], None]] = (),
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self._path = path
        self._stage = stage
        self._listeners = tuple(listeners)
        self._tags = dict(tags or {})

    def for_stage(self, stage: str) -> "Trace":
        """The same trace, speaking for ``stage``."""
        return Trace(self._path, stage=stage, listeners=self._listeners, tags=self._tags)

    def about(self, **tags: str) -> "Trace":
        """The same trace, whose events also carry ``tags``: the variant (and format) that they are about."""
        return Trace(self._path, stage=self._stage, listeners=self._listeners, tags=self._tags | tags)

    def metric(self, name: str, value: float, unit: str, **tags: Any) -> None:  # noqa: ANN401 - JSON values
        """Record a number with its unit; tags such as ``epoch=3`` tell equal names apart."""
        self._emit("metric", name, value, unit, tags)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record rows that belong together."""
        self._emit("table", name, list(rows), None, {})

    def input(self, what: str, *, shape: Sequence[int], dtype: str, example: Any) -> None:  # noqa: ANN401
        """Record what the stage takes in: a name, a shape, a dtype, and one real example of this run."""
        self._emit("input", what, {"shape": list(shape), "dtype": dtype, "example": example}, None, {})

    def output(self, what: str, *, shape: Sequence[int], dtype: str, example: Any) -> None:  # noqa: ANN401
        """Record what the stage gives out, as for ``input``."""
        self._emit("output", what, {"shape": list(shape), "dtype": dtype, "example": example}, None, {})

    def note(self, name: str, text: str, **tags: Any) -> None:  # noqa: ANN401 - JSON values
        """Record a sentence for the reader, such as an observation about an epoch."""
        self._emit("note", name, text, None, tags)

    def warning(self, text: str) -> None:
        """Record something the user should know; it is shown in the terminal, the summary and the report."""
        self._emit("warning", "warning", text, None, {})

    def fallback(self, text: str) -> None:
        """Record that something was done in another way than asked for."""
        self._emit("fallback", "fallback", text, None, {})

    def progress(self, what: str, done: float, total: float | None, unit: str) -> None:
        """Tell listeners how far ``what`` is; never written to the file."""
        event = self._event("progress", what, {"done": done, "total": total}, unit, {})
        for listener in self._listeners:
            listener(event)

    def event(self, kind: str, name: str, value: Any = None, **tags: Any) -> None:  # noqa: ANN401 - JSON values
        """Record an event of another kind; the pipeline uses it for the start and end of stages."""
        self._emit(kind, name, value, None, tags)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Record how many seconds the block took."""
        start = time.perf_counter()
        yield
        self._emit("span", name, time.perf_counter() - start, "s", {})

    def _event(self, kind: str, name: str, value: Any, unit: str | None, tags: Mapping[str, Any]) -> Event:  # noqa: ANN401
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        return {"time": now, "stage": self._stage, "kind": kind, "name": name, "value": value, "unit": unit} | {
            **self._tags,
            **tags,
        }

    def _emit(self, kind: str, name: str, value: Any, unit: str | None, tags: Mapping[str, Any]) -> None:  # noqa: ANN401
        event = self._event(kind, name, _json_value(value), unit, {key: _json_value(tag) for key, tag in tags.items()})
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n")
        for listener in self._listeners:
            listener(event)


def read_trace(path: Path) -> list[Event]:
    """Read the events of a trace file; a last line without its end is dropped.

    Raises: InputError: the file is missing, or a line other than the last is no JSON object.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise InputError(f"can't be read: {error.strerror or error}", where=str(path)) from error
    events: list[Event] = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            event = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise InputError(f"line {number} is no JSON: {error}", where=str(path)) from error
        events.append(event)
    return events


def texts_told(events: Sequence[Event], kind: str) -> list[str]:
    """What the events of a kind ("warning", "fallback") say, each sentence once."""
    return list(dict.fromkeys(sentence_of(event) for event in events if event["kind"] == kind))


def num_fallbacks(events: Sequence[Event], variant: str, format_: str | None) -> int:
    """How many different fallbacks a variant took on its way into a format; None for its directory alone."""
    about = [event for event in events if event.get("variant") == variant and event.get("format") in {None, format_}]
    return len(texts_told(about, "fallback"))


def sentence_of(event: Event) -> str:
    """What a warning or fallback says, after the variant and format that it is about."""
    named = [str(event[tag]) for tag in ("variant", "format") if tag in event]
    return f"{'.'.join(named)}: {event['value']}" if named else str(event["value"])


def _json_value(value: Any) -> Any:  # noqa: ANN401 - any value made of JSON-like parts
    """Replace NaN and infinities by their names, numpy and torch scalars by plain numbers."""
    if isinstance(value, Mapping):
        return {str(key): _json_value(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(part) for part in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool | int | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    return str(value).encode(errors="replace").decode()  # half a surrogate pair has no UTF-8
