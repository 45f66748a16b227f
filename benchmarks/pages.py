"""Pages of docs/ whose tables are made from committed results: ``python benchmarks/pages.py [--check]``.

Each table stands between two marks, ``<!-- table: KIND-RECIPE -->`` and ``<!-- end of table -->``; the words around
them are written by hand.
"""

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import distill_tables
import quantize_tables

DOCS = Path(__file__).parents[1] / "docs"
PAGES: Mapping[str, Mapping[str, Callable[..., str]]] = {
    "distilling.md": distill_tables.TABLES,
    "quantizing.md": quantize_tables.TABLES,
}
MARKED = re.compile(r"<!-- table: (\S+) -->\n.*?<!-- end of table -->", re.DOTALL)


def filled(text: str, tables: Mapping[str, Callable[..., str]]) -> str:
    """The text of a page with every table made anew."""

    def made(match: re.Match[str]) -> str:
        kind, _, recipe = match[1].partition("-")
        table = tables[kind](recipe) if recipe else tables[kind]()
        return f"<!-- table: {match[1]} -->\n{table}\n<!-- end of table -->"

    return MARKED.sub(made, text)


def main(*, check: bool) -> int:
    """Put the tables into the pages; with ``check`` return 1 if that would change one."""
    stale = 0
    for name, tables in PAGES.items():
        path = DOCS / name
        text = path.read_text(encoding="utf-8")
        wanted = filled(text, tables)
        stale |= wanted != text
        if not check:
            path.write_text(wanted, encoding="utf-8")
    return int(stale) if check else 0


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
