"""The result of a run as one JSON object: gathered from the stages' own files and from the trace."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.core.artefact import Manifest
from potstill.core.durable import read_json
from potstill.core.trace import Event, num_fallbacks, texts_told
from potstill.recipe import Recipe
from potstill.stages import Stage

__all__ = ["latest_events", "summarise", "with_fallbacks"]


def summarise(
    recipe: Recipe,
    out: Path,
    stages: Sequence[Stage],
    done: Mapping[str, Manifest],
    cached: Mapping[str, bool],
    events: Sequence[Event],
) -> dict[str, Any]:
    """The keys of summary.json; ``seconds`` is what making all stages took, whenever that was."""
    told = {stage.name: latest_events(events, stage.name) for stage in stages}
    everything = [event for stage in told.values() for event in stage]
    directories = {stage.name: out / "stages" / stage.name for stage in stages}
    return {
        "recipe": recipe.name,
        "seconds": round(sum(manifest.seconds for manifest in done.values()), 3),
        "peak_memory_bytes": max(manifest.peak_memory_bytes for manifest in done.values()),
        "stages": [_stage(stage, done[stage.name], told[stage.name], cached=cached[stage.name]) for stage in stages],
        "data": read_json(directories["01-data"] / "data.json"),
        "training": _training(directories),
        "models": with_fallbacks(_optional(directories, "08-evaluate", "models.json", []), everything),
        "labels": _optional(directories, "03-labels", "labels.json", None),
        "label_example": _optional(directories, "03-labels", "example.json", None),
        "twin": _optional(directories, "08-evaluate", "twin.json", None),
        "preflight": _optional(directories, "03-labels", "preflight.json", None),
        "teacher_check": _optional(directories, "04-student", "teacher_check.json", None),
        "hardware": _optional(directories, "08-evaluate", "hardware.json", None),
        "predictions": _optional(directories, "08-evaluate", "predictions.json", []),
        "prune": _optional(directories, "05-prune", "prune.json", None),
        "versions": done["01-data"].versions,
        "warnings": [*recipe.doubts, *texts_told(everything, "warning")],
        "fallbacks": texts_told(everything, "fallback"),
    }


def latest_events(events: Sequence[Event], stage: str) -> list[Event]:
    """A stage's events since it was last begun from nothing; a resumed try keeps those before the stop."""
    kept: list[Event] = []
    for event in events:
        if event.get("stage") != stage:
            continue
        if event["kind"] == "stage_start" and not event["value"]["cached"] and not event["value"].get("resumed"):
            kept = []
        kept.append(event)
    return kept


def _stage(stage: Stage, manifest: Manifest, events: Sequence[Event], *, cached: bool) -> dict[str, Any]:
    return {
        "name": stage.name,
        "kind": stage.kind,
        "seconds": manifest.seconds,
        "peak_memory_bytes": manifest.peak_memory_bytes,
        "cached": cached,
        "inputs": _examples(events, "input"),
        "outputs": _examples(events, "output"),
    }


def _examples(events: Sequence[Event], side: str) -> list[dict[str, Any]]:
    latest = {event["name"]: event["value"] for event in events if event["kind"] == side}
    return [{"what": what, **value} for what, value in latest.items()]


def with_fallbacks(rows: Sequence[Mapping[str, Any]], events: Sequence[Event]) -> list[dict[str, Any]]:
    """The rows of ``models``, each with how many fallbacks it took to make it.

    The file of a base's float32 weights shares the base's name, and is the variant NAME-float32.
    """
    return [
        {
            **row,
            "fallbacks": sum(
                num_fallbacks(events, variant, row["format"]) for variant in (row["name"], f"{row['name']}-float32")
            ),
        }
        for row in rows
    ]


def _training(directories: Mapping[str, Path]) -> dict[str, Any]:
    student = directories["04-student"]
    places = {
        "teacher": directories["02-teacher"] / "history.json" if "02-teacher" in directories else None,
        "student": student / "history.json",
        "twin": student / "twin" / "history.json",
        "twin-long": student / "twin-long" / "history.json",
        "pruned": directories["05-prune"] / "history.json" if "05-prune" in directories else None,
    }
    return {who: read_json(path) if path is not None and path.exists() else [] for who, path in places.items()}


def _optional(directories: Mapping[str, Path], stage: str, file: str, default: Any) -> Any:  # noqa: ANN401 - any JSON
    path = directories[stage] / file if stage in directories else None
    return read_json(path) if path is not None and path.exists() else default
