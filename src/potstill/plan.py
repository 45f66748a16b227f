"""What would a run do, and what would it cost? Told from the recipe and the run directory; nothing is written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.core.artefact import read_manifest
from potstill.costs import COSTS, PROCESS_BYTES, sizes_of
from potstill.recipe import Recipe
from potstill.stages import Stage, stage_fingerprint, stages_of

__all__ = ["disk_bytes_to_write", "plan"]


def plan(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Every stage with what it makes and costs, and whether ``out`` holds it already.

    Raises: PotstillError: what the run would fail on at once, such as a file of the text that isn't there.
    """
    sizes = sizes_of(recipe)
    states = _states(recipe, out)
    rows: list[dict[str, Any]] = []
    memory_bytes = 0
    for stage in stages_of(recipe):
        cost = COSTS[stage.name](recipe, sizes)
        memory_bytes = max(memory_bytes, round(cost.memory_bytes or PROCESS_BYTES))  # one process; it gives little back
        minutes = None if cost.seconds is None else round(cost.seconds / 60, 1)
        rows.append(
            {
                "stage": stage.name,
                "does": cost.does,
                "makes": cost.shape,
                "parameters": cost.parameters,
                "disk_bytes": None if cost.disk_bytes is None else round(cost.disk_bytes),
                "memory_bytes": memory_bytes,
                "minutes": 0.0 if states[stage.name] == "done" else minutes,
                "state": states[stage.name],
            }
        )
    known = [row["minutes"] for row in rows if row["minutes"] is not None]
    return {
        "recipe": recipe.name,
        "warnings": list(recipe.doubts),
        "run_directory": str(out),
        "stages": rows,
        "minutes": round(sum(known), 1),
        "minutes_unknown": [row["stage"] for row in rows if row["minutes"] is None],
        "memory_bytes": memory_bytes,
        "disk_bytes": sum(row["disk_bytes"] or 0 for row in rows),
    }


def disk_bytes_to_write(recipe: Recipe, out: Path) -> dict[str, int]:
    """About how much each stage that ``out`` doesn't hold yet will write, as far as the recipe tells: stage → bytes."""
    sizes = sizes_of(recipe)
    missing = [stage.name for stage in stages_of(recipe) if read_manifest(out / "stages" / stage.name) is None]
    return {name: round(COSTS[name](recipe, sizes).disk_bytes or 0) for name in missing}


def _states(recipe: Recipe, out: Path) -> Mapping[str, str]:
    """Whether each stage is done in ``out``, was begun, or is still to do."""
    fingerprints: dict[str, str] = {}
    states: dict[str, str] = {}
    for stage in stages_of(recipe):
        inputs = {role: fingerprints[name] for role, name in stage.inputs.items()}
        fingerprints[stage.name] = stage_fingerprint(stage, recipe, inputs)
        states[stage.name] = _state(stage, out, fingerprints[stage.name])
    return states


def _state(stage: Stage, out: Path, fingerprint: str) -> str:
    directory = out / "stages" / stage.name
    manifest = read_manifest(directory)
    if manifest is not None:
        return "done" if manifest.fingerprint == fingerprint else "changed"
    return "begun" if directory.exists() else "to do"
