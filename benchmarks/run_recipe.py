"""Run a recipe afresh and keep what it measured: ``python benchmarks/run_recipe.py recipes/quickstart.yaml``.

The result goes to benchmarks/results/NAME_PROCESSOR-CORES_DATE/: summary, trace, report, and the environment.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from results_folder import results_folder

from potstill.recipe import load_recipe

KEPT = ("recipe.yaml", "summary.json", "trace.jsonl", "report.html")


def main(recipe: Path) -> None:
    """Run ``recipe`` in a directory of its own, and copy what tells about it."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        program = [sys.executable, "-m", "potstill"]
        subprocess.run([*program, "run", str(recipe), "--out", str(out)], check=True)
        target = results_folder(load_recipe(recipe).name)
        for name in KEPT:
            shutil.copyfile(out / name, target / name)
    print(f"kept in {target}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
