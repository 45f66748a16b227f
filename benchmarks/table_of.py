"""What the tables of the pages share: finding a result, and Markdown."""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Line", "interval_over_seeds", "mean_of", "newest", "table"]

RESULTS = Path(__file__).with_name("results")
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t for a 95 % interval of a mean over so many seeds."""

Line = dict[str, Any]


def newest(benchmark: str, name: str) -> Any:  # noqa: ANN401 - what a benchmark wrote
    """The newest committed result of a part of a benchmark."""
    found = RESULTS.glob(f"{benchmark}_*/{name}.json")
    path = max(found, key=lambda path: path.parent.name.rpartition("_")[2])
    return json.loads(path.read_text(encoding="utf-8"))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def mean_of(lines: Sequence[Line], key: str, digits: str) -> str:
    """The mean of what some of the lines say; nothing where none does."""
    values = [line[key] for line in lines if line.get(key) is not None]
    return f"{statistics.mean(values):{digits}}" if values else ""


def interval_over_seeds(values: Sequence[float]) -> str:
    """The mean over seeds and its 95 % interval."""
    if len(values) < 2:
        return f"{values[0]:+.3f}" if values else ""
    half = T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):+.3f} ± {half:.3f}"
