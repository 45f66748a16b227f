"""What do labels cost, and what does a student learn from them? ``python benchmarks/distill.py WHAT ...``.

``curve [RECIPE]``: bytes of a label against the student's held-out loss, over ways of labelling and seeds.
``bytes [RECIPE]``: bytes of a store and their floor, over the teacher's whole text.
``steps``: seconds and peak memory of a training step: cached labels, true tokens, the teacher in the loop.
``grid [RECIPE]``: sizes of students times amounts of text, distilled against plain at equal wall-clock.
``trl [RECIPE] --trl-python P``: the same work done by TRL, of the environment of that Python.

Results go to benchmarks/results/distill_PROCESSOR-CORES_DATE/; what is half done is kept in the folder.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from distilling.against_trl import compare_with_trl
from distilling.curve import WAYS, measure, measure_bytes
from distilling.grid import measure_grid
from distilling.steps import VOCABULARIES, measure_steps, peak_of_steps
from results_folder import results_folder


def main() -> None:
    """Measure one of the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["curve", "bytes", "steps", "grid", "trl", "peak"])
    parser.add_argument("which", nargs="*", default=["distill-8k"])
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--trl-python", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.what == "peak":
        vocabulary, way = asked.which
        print(peak_of_steps(int(vocabulary), asked.folder, way))
        return
    lines = []
    for line in _lines(asked):
        print(json.dumps(line), flush=True)
        lines.append(line)
    name = asked.what if asked.what == "steps" else f"{asked.what}-{asked.which[0]}"
    path = results_folder("distill") / f"{name}.json"
    path.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    print(f"kept in {path}")


def _lines(asked: argparse.Namespace) -> Iterable[dict[str, Any]]:
    recipe, folder = asked.which[0], asked.folder / asked.which[0]
    match asked.what:
        case "curve":
            return measure(recipe, folder, range(asked.first_seed, asked.seeds), asked.ways)
        case "bytes":
            return measure_bytes(recipe, folder)
        case "grid":
            return measure_grid(recipe, folder)
        case "trl":
            return (compare_with_trl(recipe, folder, asked.trl_python, seed) for seed in range(asked.seeds))
        case _:
            return (measure_steps(vocabulary) for vocabulary in VOCABULARIES)


if __name__ == "__main__":
    main()
