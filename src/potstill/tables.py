"""Results for people: the closing table of a run, what a plan would do, a model's parts, the environment.

Every cell is a ``Text`` made of visible characters, so names that come from files can neither colour nor move anything.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from potstill.terminal import MISSING, count, megabytes, stage_line, stage_name, visible

__all__ = ["print_plan", "print_summary", "print_tree"]

_MODEL_COLUMNS = ("model", "file", "MB", "perplexity\n[95 %]", "agree", "prefill\ntok/s", "decode\ntok/s")
_WIDE = 96
_EPOCH_COLUMNS = ("epoch", "train nats", "held-out nats", "accuracy", "agreement")


def print_summary(console: Console, summary: Mapping[str, Any], *, stages: bool) -> None:
    """Print a run's models; with ``stages``, what every stage cost and how the student learned too."""
    if stages:
        for number, stage in enumerate(summary["stages"], start=1):
            console.print(
                stage_line(f"{number}/{len(summary['stages'])}", stage_name(stage["name"]), {**stage, "cached": False})
            )
        _print_epochs(console, summary["training"]["student"])
    _print_models(console, summary["models"])
    for kind in ("warnings", "fallbacks"):
        for text in summary[kind]:
            console.print(Text(f"! {kind[:-1]}: {visible(text)}", style="yellow"))
    memory = megabytes(summary["peak_memory_bytes"])
    told = ", ".join(_times(len(summary[kind]), kind[:-1]) for kind in ("warnings", "fallbacks"))
    cost = f"{summary['seconds']:.1f} s, at most {memory} MB of memory"
    console.print(Text(f"{visible(summary['recipe'])}: {cost}, {told}"))


def print_plan(console: Console, plan: Mapping[str, Any]) -> None:
    """Print what a run would do and cost; a dash where only the run itself finds out."""
    rows = (
        (
            stage_name(row["stage"]),
            visible(row["does"]),
            visible(row["makes"]),
            count(row["parameters"]),
            megabytes(row["disk_bytes"]),
            megabytes(row["memory_bytes"]),
            MISSING if row["minutes"] is None else f"{row['minutes']:.1f}",
            row["state"],
        )
        for row in plan["stages"]
    )
    columns = ("stage", "does", "makes", "weights", "disk\nMB", "memory\nMB", "minutes", "state")
    _print_table(console, columns, rows, num_left=3)
    unknown = ", ".join(stage_name(name) for name in plan["minutes_unknown"])
    beside = f", beside {unknown}, which only the run finds out" if unknown else ""
    console.print(
        f"{visible(plan['recipe'])} in {visible(plan['run_directory'])}: about {plan['minutes']:.1f} minutes{beside}; "
        f"{megabytes(plan['memory_bytes'])} MB of memory, {megabytes(plan['disk_bytes'])} MB on disk"
    )
    for warning in plan["warnings"]:
        console.print(Text.assemble(("warning: ", "yellow"), visible(warning)))


def print_tree(console: Console, facts: Mapping[str, Any], *, indent: int = 0) -> None:
    """Print a tree of facts, one a line; a list of mappings becomes a table. A unit stands in its key's name."""
    for key, value in facts.items():
        name = " " * indent + visible(key).replace("_", " ")
        if isinstance(value, Mapping):
            console.print(Text(name, style="bold"))
            print_tree(console, value, indent=indent + 2)
        elif isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
            console.print(Text(name, style="bold"))
            _print_rows(console, value)
        else:
            console.print(Text.assemble((f"{name}: ", "dim"), _cell(value)), soft_wrap=True)


def _print_rows(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    headings = [visible(column).replace("_", " ") for column in columns]
    _print_table(console, headings, ([_cell(row.get(column)) for column in columns] for row in rows), num_left=1)


def _print_epochs(console: Console, epochs: Sequence[Mapping[str, Any]]) -> None:
    keys = ("train_loss_nats", "validation_loss_nats", "validation_accuracy", "validation_agreement")
    rows = ([str(epoch["epoch"]), *(_fraction(epoch.get(key)) for key in keys)] for epoch in epochs)
    _print_table(console, _EPOCH_COLUMNS, rows, num_left=0)


def _print_table(console: Console, headings: Sequence[str], rows: Iterable[Sequence[str]], *, num_left: int) -> None:
    gap = 1 if console.width >= _WIDE else 0
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap, 0, 0))
    for column, heading in enumerate(headings):
        table.add_column(Text(heading), justify="left" if column < num_left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def _print_models(console: Console, models: Sequence[Mapping[str, Any]]) -> None:
    """The closing table, one line a model at 80 columns; a wider terminal shows the number of weights too."""
    wide = console.width >= _WIDE
    columns = (*_MODEL_COLUMNS, "weights") if wide else _MODEL_COLUMNS
    rows = ((*_model_cells(row), count(row.get("parameters"))) for row in models)
    _print_table(console, columns, (row[: len(columns)] for row in rows), num_left=2)


def _model_cells(row: Mapping[str, Any]) -> Sequence[str]:
    low_high = row.get("perplexity_interval_95")
    interval = f" [{_three_digits(low_high[0])}, {_three_digits(low_high[1])}]" if low_high else ""
    return (
        visible(row["name"]),
        visible(f"{row['engine']} {row['dtype']}"),
        megabytes(row.get("bytes")),
        _perplexity(row.get("perplexity")) + interval,
        _fraction(row.get("agreement_with_teacher")),
        count(row.get("prefill_tokens_per_s")),
        count(row.get("decode_tokens_per_s")),
    )


def _times(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, list | tuple):
        return ", ".join(_cell(part) for part in value)
    return MISSING if value is None else visible(value)


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _perplexity(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:#.4g}"


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _fraction(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"
