"""Sizes of students times amounts of text: distilled against plain at equal wall-clock, each cell as a run does it.

A cell is what ``potstill run`` makes of the stages labels and student with ``twin: true``: labels are captured, the
plain twin trains as long as capturing, opening, reading and learning took, and each keeps its best epoch.
"""

import json
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from distilling.prepare import Prepared, prepare

from potstill.core.artefact import seal
from potstill.core.durable import read_json
from potstill.core.trace import Trace
from potstill.data.sequences import PackedSequences
from potstill.evaluate.bootstrap import twin_verdict
from potstill.evaluate.likelihood import score
from potstill.labels.settings import Sampled
from potstill.runtime.pytorch import PytorchEngine
from potstill.teacher.capture import capture_labels
from potstill.teacher.settings import CaptureSettings
from potstill.train.precision import resolve_precision
from potstill.train.student import train_student

__all__ = ["measure_grid"]

SIZES = (750_000, 1_250_000, 2_500_000)
ROWS = (750, 3_000)
_EPOCHS, _DRAWS, _RESAMPLES = 4, 16, 2_000


def measure_grid(recipe: str, folder: Path) -> Iterator[dict[str, Any]]:
    """A line for each cell; cells made before are not made again."""
    prepared = prepare(recipe, folder)
    lines = folder / "grid.jsonl"
    done = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    for parameters in SIZES:
        for rows in ROWS:
            line = next((line for line in done if (line["budget"], line["rows"]) == (parameters, rows)), None)
            if line is None:
                line = _cell(prepared, folder / f"cell-{parameters}-{rows}", parameters, rows)
                with lines.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            yield line


def _cell(prepared: Prepared, out: Path, parameters: int, rows: int) -> dict[str, Any]:
    inputs = {**prepared.inputs, "labels": out / "labels"}
    trace = Trace(out / "trace.jsonl")
    _capture(prepared, inputs, rows, trace)
    settings = prepared.recipe.student.model_copy(update={"parameters": parameters, "epochs": _EPOCHS, "twin": True})
    train_student(settings, prepared.recipe.machine, rows, inputs, out / "student", trace)
    student = out / "student"
    threads = torch.get_num_threads()
    models = {"student": student, "twin": student / "twin", "twin-long": student / "twin-long"}
    models = {name: path / "model" for name, path in models.items() if (path / "model").exists()}
    engines = {name: PytorchEngine(path, threads=threads) for name, path in models.items()}
    scores = score(engines, "student", prepared.text("test"), trace)
    longest = "twin-long" if "twin-long" in scores else "twin"
    verdict = twin_verdict(scores["student"], scores[longest], seed=0, num_resamples=_RESAMPLES)
    line = {
        "budget": parameters,
        "rows": rows,
        "tokens": PackedSequences.load(prepared.inputs["data"], "train").first(rows).num_scored,
        "label_bytes_per_token": read_json(out / "labels" / "labels.json")["bytes_per_token"],
        "test_nats": {name: of.nats_per_position for name, of in scores.items()},
        "difference_nats": verdict["difference_nats"],
        "interval_95": verdict["interval_95"],
        "equal_time": read_json(student / "equal_time.json"),
        "teacher_check": read_json(student / "teacher_check.json"),
    }
    shutil.rmtree(out)
    return line


def _capture(prepared: Prepared, inputs: dict[str, Path], rows: int, trace: Trace) -> None:
    """The labels stage with its manifest, from which the twin learns how long it took."""
    started, clock = datetime.now(UTC), time.perf_counter()
    settings = CaptureSettings(
        labels=Sampled(draws=_DRAWS), sentences=rows, precision=resolve_precision("auto", "cpu"), seed=0
    )
    capture_labels(settings, prepared.inputs, inputs["labels"], trace)
    seal(
        inputs["labels"],
        kind="sampled",
        fingerprint="benchmark",
        settings={},
        inputs={},
        started=started,
        seconds=time.perf_counter() - clock,
        peak_memory_bytes=0,
    )
