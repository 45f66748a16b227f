"""Where a benchmark's result is kept: benchmarks/results/NAME_PROCESSOR-CORES_DATE/, with the environment in it."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path

from potstill.environment import describe

__all__ = ["results_folder"]

RESULTS = Path(__file__).with_name("results")


def results_folder(name: str) -> Path:
    """The folder for a result of today on this machine, made if need be, with ``environment.json`` in it."""
    environment = describe()
    processor = environment["processor"]
    hardware = re.sub(r"[^a-z0-9]+", "-", processor["model"].lower()).strip("-")
    today = datetime.now(UTC).date().isoformat()
    folder = RESULTS / f"{name}_{hardware}-{processor['cores_usable']}-cores_{today}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "environment.json").write_text(json.dumps(environment, indent=2) + "\n", encoding="utf-8")
    return folder
