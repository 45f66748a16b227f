"""The table of measured results in README.md, made from a committed result: ``python benchmarks/readme_table.py``.

Writes the table between the README's two marks; ``--check`` only says whether it stands there already.
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- table: quickstart -->", "<!-- end of table -->"


def latest(recipe: str) -> Path:
    """The newest result directory of a recipe; its name ends in the date."""
    return max(RESULTS.glob(f"{recipe}_*"), key=lambda path: path.name.rpartition("_")[2])


def table(result: Path) -> str:
    """The models of a result as Markdown, and where it was measured."""
    summary = json.loads((result / "summary.json").read_text(encoding="utf-8"))
    lines = [
        "| model | file, engine | MB | perplexity (95 % interval) | agreement | decode, tokens/s | peak memory, MB |",
        "|---|---|---|---|---|---|---|",
        *(_row(row) for row in summary["models"]),
    ]
    hardware, twin = summary["hardware"], summary["twin"]
    place = f"{hardware['threads']} threads, {hardware['processor']}"
    verdict = f"Student minus plain twin: {twin['difference_nats']:+.3f} nats a token " if twin else ""
    interval = f"(95 % interval {twin['interval_95'][0]:+.3f} to {twin['interval_95'][1]:+.3f}). " if twin else ""
    cost = f"The whole run: {summary['seconds']:.0f} s, {summary['peak_memory_bytes'] / 1e6:,.0f} MB, {place}. "
    source = result.relative_to(ROOT).as_posix()
    return "\n".join([*lines, "", f"{verdict}{interval}{cost}Source: [{source}]({source})."])


def _row(row: dict[str, Any]) -> str:
    low, high = row["perplexity_interval_95"]
    return (
        f"| {row['name']} | {row['format']} {row['dtype']}, {row['engine']} | {row['bytes'] / 1e6:.2f} "
        f"| {row['perplexity']:.1f} ({low:.0f} to {high:.0f}) | {row['agreement_with_teacher']:.3f} "
        f"| {row['decode_tokens_per_s']:,.0f} | {row['peak_memory_bytes'] / 1e6:,.0f} |"
    )


def main(*, check: bool) -> int:
    """Put the table into the README; with ``check`` return 1 if that would change it."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    wanted = f"{before}{BEGIN}\n{table(latest('quickstart'))}\n{END}{after}"
    if check:
        return int(wanted != text)
    readme.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
