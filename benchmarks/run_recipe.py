"""Run a recipe afresh and keep what it measured: ``python benchmarks/run_recipe.py recipes/quickstart.yaml``.

The result goes to benchmarks/results/NAME_PROCESSOR-CORES_DATE/: summary, trace, report, and the environment.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from potstill.environment import describe
from potstill.recipe import load_recipe

RESULTS = Path(__file__).with_name("results")
KEPT = ("recipe.yaml", "summary.json", "trace.jsonl", "report.html")


def main(recipe: Path) -> None:
    """Run ``recipe`` in a directory of its own, and copy what tells about it."""
    environment = describe()
    processor = environment["processor"]
    hardware = re.sub(r"[^a-z0-9]+", "-", processor["model"].lower()).strip("-")
    today = datetime.now(UTC).date().isoformat()
    target = RESULTS / f"{load_recipe(recipe).name}_{hardware}-{processor['cores_usable']}-cores_{today}"
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        program = [sys.executable, "-m", "potstill"]
        subprocess.run([*program, "run", str(recipe), "--out", str(out)], check=True)
        target.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            shutil.copyfile(out / name, target / name)
    (target / "environment.json").write_text(json.dumps(environment, indent=2) + "\n", encoding="utf-8")
    print(f"kept in {target}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
