"""The same student on the same rows from the same teacher: potstill's cached labels, and TRL's distillation trainer.

Both get the same initial weights, epochs, batch, peak rate, warm-up, decay and precision; the order of the rows is each
one's own. potstill's seconds count capturing the labels and opening them, as one student's share; TRL asks the teacher
at every step.
"""

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distilling.curve import fresh_student
from distilling.prepare import Prepared, prepare
from distilling.teach import Online, stored

from potstill.core.trace import Trace
from potstill.distill.objective import Objective
from potstill.distill.settings import ForwardKl
from potstill.labels.settings import Sampled
from potstill.model.store import load_model, save_model
from potstill.train.loop import Training, TrainingText, fit
from potstill.train.precision import resolve_precision
from potstill.train.settings import default_learning_rate
from potstill.train.validation import validate

__all__ = ["compare_with_trl"]

_DRAWS = 32


def compare_with_trl(recipe: str, folder: Path, trl_python: Path, seed: int) -> dict[str, Any]:
    """Seconds, tokens a second and held-out nats of both."""
    prepared = prepare(recipe, folder)
    scratch = folder / "trl"
    shutil.rmtree(scratch, ignore_errors=True)  # a checkpoint of an earlier run would be gone on from
    scratch.mkdir()
    ours, theirs = _potstill(prepared, scratch, seed), _trl(prepared, scratch, trl_python, seed)
    return {
        "recipe": recipe,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "student_parameters": fresh_student(prepared, seed).num_parameters(),
        "teacher_parameters": load_model(prepared.inputs["teacher"] / "model").num_parameters(),
        "tokens": prepared.text("train").num_scored,
        "epochs": prepared.recipe.student.epochs,
        "potstill": ours,
        "trl": theirs,
        "speed_over_trl": theirs["seconds"] / ours["seconds"],
        "step_speed_over_trl": theirs["seconds"] / ours["training_seconds"],
    }


def _potstill(prepared: Prepared, scratch: Path, seed: int) -> dict[str, Any]:
    precision, text = resolve_precision("auto", "cpu"), prepared.text("train")
    start = time.perf_counter()
    labels = stored(prepared, text, Sampled(draws=_DRAWS), seed=seed, precision=precision)
    capture_s = time.perf_counter() - start
    student = fresh_student(prepared, seed)
    training = Training(
        who="student",
        model=student,
        text=TrainingText(text, labels.labels),
        validation=TrainingText(
            prepared.text("validation"),
            Online(prepared, prepared.text("validation"), precision=precision),  # type: ignore[arg-type]
        ),
        objective=Objective([ForwardKl()]),
        settings=prepared.recipe.student,
        seed=seed,
        precision=precision,
    )
    history = fit(training, scratch / f"potstill-{seed}", Trace())
    training_s = sum(entry["seconds"] for entry in history)
    facts = {"capture_seconds": capture_s, "training_seconds": training_s, "seconds": capture_s + training_s}
    return _judged(prepared, student, facts, bytes_per_token=labels.bytes_per_token)


def _trl(prepared: Prepared, scratch: Path, trl_python: Path, seed: int) -> dict[str, Any]:
    settings, text, student = prepared.recipe.student, prepared.text("train"), fresh_student(prepared, seed)
    save_model(student, prepared.inputs["data"] / "tokenizer", scratch / "initial")
    np.savez(scratch / "rows.npz", tokens_NT=np.asarray(text.tokens_NT), lengths_N=np.asarray(text.lengths_N))
    job = {
        "student": str(scratch / "initial"),
        "teacher": str(prepared.inputs["teacher"] / "model"),
        "tokenizer": str(prepared.inputs["data"] / "tokenizer"),
        "rows": str(scratch / "rows.npz"),
        "out": str(scratch / "student"),
        "epochs": settings.epochs,
        "batch": settings.batch_sentences,
        "learning_rate": settings.learning_rate or default_learning_rate(student.num_parameters()),
        "warmup_share": settings.warmup_share,
        "final_share": settings.final_learning_rate_share,
        "weight_decay": settings.weight_decay,
        "bfloat16": resolve_precision("auto", "cpu") == "bfloat16",
        "threads": torch.get_num_threads(),
        "seed": seed,
    }
    (scratch / "job.json").write_text(json.dumps(job), encoding="utf-8")
    runner = Path(__file__).with_name("trl_runner.py")
    command = [str(trl_python), str(runner), str(scratch / "job.json")]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    facts = json.loads(done.stdout.splitlines()[-1])
    return _judged(prepared, load_model(scratch / "student"), facts)


def _judged(prepared: Prepared, student: Any, facts: dict[str, Any], **more: Any) -> dict[str, Any]:  # noqa: ANN401
    """Facts with the rate and what the student can do on the test rows."""
    text, test, precision = prepared.text("train"), prepared.text("test"), resolve_precision("auto", "cpu")
    measured = validate(student, test, Online(prepared, test, precision=precision), precision=precision)  # type: ignore[arg-type]
    tokens = text.num_scored * prepared.recipe.student.epochs
    return {
        **facts,
        **more,
        "tokens_per_s": tokens / facts["seconds"],
        "test_nats": measured["validation_cross_entropy_nats"],
        "test_agreement": measured["validation_agreement"],
    }
