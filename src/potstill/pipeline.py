"""Run a recipe: do each stage once, skip what is done, stop at the first failure, and sum up.

A stage's directory is an artefact once its manifest stands in it with the fingerprint that the recipe asks for.
A directory without one is a stage that was killed: it goes on there if it was the same stage, else it starts afresh.

Under torchrun one process leads: it holds the run directory, makes the stages that one process makes, and tells. The
others follow it into the stages that all make together, and wait in between.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from potstill.core import interrupt
from potstill.core.artefact import MANIFEST, Manifest, read_manifest, seal, verify_files
from potstill.core.durable import read_json, write_json, write_text
from potstill.core.errors import InputError, ResourceError, RunDirectoryError
from potstill.core.memory import peak_memory_bytes, reset_peak_memory
from potstill.core.trace import Event, Trace, read_trace
from potstill.core.world import World, current, joined
from potstill.export.stage import check_exports
from potstill.model.shapes import shape_for_budget
from potstill.plan import disk_bytes_to_write
from potstill.recipe import Recipe, dump_recipe
from potstill.stages import Stage, stage_fingerprint, stages_of
from potstill.summary import summarise
from potstill.train.settings import LoadedTeacher

__all__ = ["held_alone", "read_summary", "run"]

_IN_PROGRESS = "in-progress.json"
_MAKE, _CACHED, _END = "make", "cached", "end of the run"


def run(recipe: Recipe, out: Path, *, listeners: Sequence[Callable[[Event], None]] = ()) -> dict[str, Any]:
    """Make everything that the recipe asks for in the run directory ``out``, and return the summary.

    Run again, it does only what is missing or depends on what changed. Listeners hear every event of the trace. Under
    torchrun every process calls this; the listeners of the leading one hear.

    Raises: PotstillError: whatever a stage can't do; finished stages stay. Interrupted: SIGINT or SIGTERM came.
    """
    with joined(recipe.device) as world:
        if world.leads:
            summary = _lead(recipe, out, listeners)
            world.tell(_END, "done")
            return summary
        _follow(recipe, out, world)
        return read_summary(out)


def _lead(recipe: Recipe, out: Path, listeners: Sequence[Callable[[Event], None]]) -> dict[str, Any]:
    started = time.perf_counter()
    _make_directory(out)
    with held_alone(out), interrupt.watching(launched=current().size > 1):
        _claim(out, recipe)
        _use_threads(recipe.threads)
        _check_loaded_teacher(recipe)
        check_exports(recipe.export)
        _check_disk(recipe, out)
        trace = Trace(out / "trace.jsonl", listeners=listeners)
        for doubt in recipe.doubts:
            trace.for_stage("recipe").warning(doubt)
        stages = stages_of(recipe)
        done: dict[str, Manifest] = {}
        cached: dict[str, bool] = {}
        for number, stage in enumerate(stages, start=1):
            interrupt.check()
            done[stage.name], cached[stage.name] = _make(stage, recipe, out, done, trace, (number, len(stages)))
        summary = summarise(recipe, out, stages, done, cached, read_trace(out / "trace.jsonl"))
        summary["seconds_this_time"] = round(time.perf_counter() - started, 3)
        write_json(out / "summary.json", summary)
        _report(out, trace.for_stage("report"))
    return summary


def _follow(recipe: Recipe, out: Path, world: World) -> None:
    """Work with the others on what is made together, and wait for the end of the run."""
    _use_threads(recipe.threads)
    with interrupt.watching(launched=True):
        for stage in stages_of(recipe):
            if stage.together and world.hear(stage.name) == _MAKE:
                directory = out / "stages" / stage.name
                if not directory.is_dir():
                    raise InputError(
                        "isn't there, though the leading process has made it",
                        where=str(directory),
                        next_step="give an --out on a file system that all machines share",
                    )
                stage.run(_input_directories(stage, out), directory, Trace())
                world.gather()
        world.hear(_END)


def _input_directories(stage: Stage, out: Path) -> dict[str, Path]:
    return {role: out / "stages" / name for role, name in stage.inputs.items()}


def read_summary(run_directory: Path) -> dict[str, Any]:
    """Read a run's summary.

    Raises: InputError: there is none; the run hasn't ended yet.
    """
    path = run_directory / "summary.json"
    if not path.exists():
        raise InputError(
            "there is no summary here", where=str(run_directory), next_step="potstill run RECIPE makes or finishes it"
        )
    summary: dict[str, Any] = read_json(path)
    return summary


def _make(
    stage: Stage, recipe: Recipe, out: Path, done: dict[str, Manifest], trace: Trace, place: tuple[int, int]
) -> tuple[Manifest, bool]:
    """Give the stage's manifest, made now or before, and whether it was made before."""
    directory = out / "stages" / stage.name
    input_fingerprints = {role: done[name].fingerprint for role, name in stage.inputs.items()}
    fingerprint = stage_fingerprint(stage, recipe, input_fingerprints)
    manifest = read_manifest(directory)
    told = trace.for_stage(stage.name)
    number, of = place
    world = current()
    if manifest is not None and manifest.fingerprint == fingerprint:
        world.tell(stage.name, _CACHED)
        verify_files(directory, manifest, contents=False)
        told.event("stage_start", stage.kind, {"number": number, "of": of, "cached": True})
        told.event("stage_end", stage.kind, _cost(manifest, cached=True))
        return manifest, True
    spent_s, resumed = _prepare_directory(directory, fingerprint)
    told.event("stage_start", stage.kind, {"number": number, "of": of, "cached": False, "resumed": resumed})
    started, clock = datetime.now(UTC), time.perf_counter()
    reset_peak_memory()
    try:
        world.tell(stage.name, _MAKE)
        stage.run(_input_directories(stage, out), directory, told)
        if stage.together:
            world.gather()
    finally:
        spent_s += time.perf_counter() - clock
        write_json(directory / _IN_PROGRESS, {"fingerprint": fingerprint, "seconds": spent_s})
    _sweep(directory, stage.scratch)
    manifest = seal(
        directory,
        kind=stage.kind,
        fingerprint=fingerprint,
        settings=stage.settings,
        inputs=input_fingerprints,
        started=started,
        seconds=spent_s,
        peak_memory_bytes=peak_memory_bytes(),
        leave_out=[_IN_PROGRESS],
    )
    (directory / _IN_PROGRESS).unlink()
    told.event("stage_end", stage.kind, _cost(manifest, cached=False))
    return manifest, False


def _cost(manifest: Manifest, *, cached: bool) -> dict[str, Any]:
    return {"seconds": manifest.seconds, "peak_memory_bytes": manifest.peak_memory_bytes, "cached": cached}


def _prepare_directory(directory: Path, fingerprint: str) -> tuple[float, bool]:
    """Leave in place what a killed run of this very stage left; remove anything else.

    Returns: seconds that were spent before, and whether there is something to go on from.
    """
    marker = directory / _IN_PROGRESS
    if marker.exists() and not (directory / MANIFEST).exists():
        state = read_json(marker)
        if state["fingerprint"] == fingerprint:
            return float(state["seconds"]), True
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    write_json(marker, {"fingerprint": fingerprint, "seconds": 0.0})
    return 0.0, False


def _sweep(directory: Path, scratch: Sequence[str]) -> None:
    for pattern in scratch:
        for path in directory.glob(pattern):
            path.unlink()


def _make_directory(out: Path) -> None:
    try:
        (out / "stages").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"can't be made: {error.strerror}", where=str(out), next_step="choose another --out"
        ) from error


@contextmanager
def held_alone(out: Path) -> Iterator[None]:
    """Hold a directory for this process alone.

    Raises: RunDirectoryError: another process holds it.
    """
    descriptor = os.open(out / "LOCK", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise RunDirectoryError(
                f"is in use by another run (process {holder})",
                where=str(out),
                next_step="wait for it, or give another --out",
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def _claim(out: Path, recipe: Recipe) -> None:
    """Write the recipe down, unless the directory belongs to a recipe of another name."""
    path = out / "recipe.yaml"
    if path.exists():
        import yaml

        there = yaml.safe_load(path.read_text(encoding="utf-8"))
        name = there.get("name") if isinstance(there, dict) else None
        if name != recipe.name:
            raise RunDirectoryError(
                f"holds a run of recipe {name!r}, not {recipe.name!r}", where=str(out), next_step="give another --out"
            )
    write_text(path, dump_recipe(recipe))


def _check_loaded_teacher(recipe: Recipe) -> None:
    """Fail before any work where the student's budget can't hold the vocabulary that a loaded teacher brings.

    Raises: RecipeError: the budget is too small. InputError: the teacher isn't there or is no model.
    """
    if isinstance(recipe.teacher, LoadedTeacher):
        from potstill.model.inspect import inspect_config

        shape_for_budget(recipe.student.parameters, inspect_config(recipe.teacher.model)["vocabulary"])


def _check_disk(recipe: Recipe, out: Path) -> None:
    """Fail before any work where the disk can't hold what the recipe makes.

    Raises: ResourceError: naming what is needed, what is free, and the stage that takes most.
    """
    needed = disk_bytes_to_write(recipe, out)
    free_bytes = shutil.disk_usage(out).free
    if sum(needed.values()) > free_bytes:
        largest = max(needed, key=needed.__getitem__)
        total_gb, largest_gb, free_gb = (size / 1e9 for size in (sum(needed.values()), needed[largest], free_bytes))
        raise ResourceError(
            f"this run writes about {total_gb:,.1f} GB, {largest_gb:,.1f} of them in stage {largest}, and "
            f"{free_gb:,.1f} GB are free",
            where=str(out),
            next_step="free some, give --out on another disk, or ask for less (labels.k, data.sentences)",
        )


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _report(out: Path, trace: Trace) -> None:
    from potstill.report.page import build_report

    with trace.span("report"):
        build_report(out)
