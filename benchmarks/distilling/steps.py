"""What does a training step cost: on cached labels, on the true tokens, and with the teacher in the loop?

The models have random weights and the text is random, for neither changes the work. A teacher that knows nothing makes
the most distinct draws there can be, so cached labels are at their dearest here. Steps of all ways take turns; a ratio
is the median over rounds, in each of which every way made one step.

A store is decoded once, when it is opened, and read in every epoch. Its share of a step is given apart, and a ratio
with all of it counted, as if there were one epoch only.

Peak memory is the largest resident set of a process of its own that makes a few steps, less what it had before them.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distilling.teach import ask

from potstill.core.memory import peak_memory_bytes, reset_peak_memory
from potstill.core.trace import Trace
from potstill.data.sequences import PackedSequences
from potstill.distill.objective import Objective
from potstill.distill.settings import CrossEntropy, ForwardKl
from potstill.distill.student import build_student
from potstill.labels.settings import Dense, Sampled
from potstill.labels.store import LabelStore, LabelWriter
from potstill.teacher.local import Answers, LocalTeacher, labels_of_rows
from potstill.teacher.prior import prior_for
from potstill.teacher.settings import CaptureSettings
from potstill.train.loop import Training, TrainingText, _Fit
from potstill.train.precision import resolve_precision
from potstill.train.settings import TrainingSettings

__all__ = ["VOCABULARIES", "measure_steps", "peak_of_steps"]

VOCABULARIES = (8_192, 32_768, 50_000)
WAYS = ("cross-entropy", "cached", "online")
_STUDENT, _TEACHERS_SHARE = {8_192: 10_000_000, 32_768: 16_000_000, 50_000: 20_000_000}, 10
_ROWS, _TOKENS, _BATCH, _DRAWS = 512, 128, 16, 32
_ROUNDS, _ONLINE_ROUNDS, _WARM_ROUNDS, _MEMORY_STEPS = 24, 3, 2, 3


@dataclass(frozen=True)
class _Case:
    """A vocabulary's text, and a store of labels for it."""

    vocabulary: int
    text: PackedSequences
    store: Path

    @classmethod
    def make(cls, vocabulary: int, directory: Path) -> "_Case":
        text = _random_text(vocabulary)
        kind = Sampled(draws=_DRAWS)
        teacher = LocalTeacher(
            _model(vocabulary, 1_000_000 + vocabulary * 32), vocabulary, CaptureSettings(labels=kind, sentences=_ROWS)
        )
        prior = prior_for(Answers(teacher, text), directory / "prior", Trace())
        writer = LabelWriter(
            directory / "store",
            kind,
            vocabulary=vocabulary,
            sequences=text,
            teacher_fingerprint="random",
            tokenizer_fingerprint="none",
            prior=prior,
        )
        for rows in writer.missing():
            writer.write(rows, labels_of_rows(teacher, text, np.arange(rows.start, rows.stop)))
        writer.finish()
        return cls(vocabulary, text, directory / "store")

    def open(self) -> LabelStore:
        return LabelStore.open(
            self.store, sequences=self.text, teacher_fingerprint="random", tokenizer_fingerprint="none"
        )

    def loop(self, way: str) -> _Fit:
        """The training loop of a way, ready for its first step."""
        labels: Any = None
        if way == "cached":
            labels = self.open()
        elif way == "online":
            teacher = _model(self.vocabulary, _TEACHERS_SHARE * _STUDENT[self.vocabulary])
            settings = CaptureSettings(labels=Dense(), sentences=_ROWS, precision=resolve_precision("auto", "cpu"))
            labels = _Asked(LocalTeacher(teacher, self.vocabulary, settings), self.text)
        training = Training(
            who="student",
            model=_model(self.vocabulary, _STUDENT[self.vocabulary]),
            text=TrainingText(self.text, labels),
            validation=TrainingText(self.text),
            objective=Objective([CrossEntropy() if way == "cross-entropy" else ForwardKl()]),
            settings=TrainingSettings(epochs=10_000, batch_sentences=_BATCH),
            seed=0,
            precision=resolve_precision("auto", "cpu"),
        )
        return _Fit(training, Trace())


@dataclass(frozen=True)
class _Asked:
    teacher: LocalTeacher
    text: PackedSequences

    def read(self, rows_B: Any) -> Any:  # noqa: ANN401 - as a store reads
        return ask(self.teacher, self.text, rows_B)


def measure_steps(vocabulary: int) -> dict[str, Any]:
    """Seconds of a step and peak memory of every way, and their ratios."""
    scratch = Path(tempfile.mkdtemp())
    try:
        case = _Case.make(vocabulary, scratch)
        start = time.perf_counter()
        case.open()
        opening_s = time.perf_counter() - start
        seconds = _interleaved(case)
        peaks = {way: _peak(vocabulary, scratch, way) for way in WAYS[:2]}
    finally:
        shutil.rmtree(scratch)
    median = {way: statistics.median(values) for way, values in seconds.items()}
    decoding_s = opening_s * _BATCH / _ROWS
    ratios = sorted(b / a for a, b in zip(seconds["cross-entropy"], seconds["cached"], strict=True))
    return {
        "vocabulary": vocabulary,
        "student_parameters": _model(vocabulary, _STUDENT[vocabulary]).num_parameters(),
        "positions_per_step": _BATCH * (_TOKENS - 1),
        "draws": _DRAWS,
        "threads": torch.get_num_threads(),
        "seconds": median,
        "decoding_s": decoding_s,
        "cached_over_cross_entropy": statistics.median(ratios),
        "cached_over_cross_entropy_quartiles": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
        "one_epoch_over_cross_entropy": statistics.median(ratios) + decoding_s / median["cross-entropy"],
        "online_over_cached": median["online"] / median["cached"],
        "online_over_one_epoch": median["online"] / (median["cached"] + decoding_s),
        "peak_bytes": peaks,
        "peak_cached_over_cross_entropy": peaks["cached"] / peaks["cross-entropy"],
    }


def _interleaved(case: _Case) -> Mapping[str, list[float]]:
    loops = {way: case.loop(way) for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for round_number in range(_WARM_ROUNDS + _ROUNDS):
        order = WAYS[:2] if round_number % 2 else WAYS[1::-1]
        for way in (*order, *WAYS[2:]) if round_number < _WARM_ROUNDS + _ONLINE_ROUNDS else order:
            start = time.perf_counter()
            loops[way]._one_step()  # noqa: SLF001 - what ``fit`` does over and over
            if round_number >= _WARM_ROUNDS:
                seconds[way].append(time.perf_counter() - start)
    return seconds


def _peak(vocabulary: int, scratch: Path, way: str) -> int:
    """Bytes that steps of a way take above what the process had before them, models and their optimiser counted."""
    script = Path(__file__).parents[1] / "distill.py"
    command = [sys.executable, str(script), "peak", str(vocabulary), way, "--folder", str(scratch)]
    return int(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))


def peak_of_steps(vocabulary: int, scratch: Path, way: str) -> int:
    """As ``_peak`` says, in this process; the store is the one that the caller made in ``scratch``."""
    text = _random_text(vocabulary)
    torch.ones(256, 256) @ torch.ones(256, 256)
    reset_peak_memory()
    before = peak_memory_bytes()
    loop = _Case(vocabulary, text, scratch / "store").loop(way)
    for _ in range(_MEMORY_STEPS):
        loop._one_step()  # noqa: SLF001 - what ``fit`` does over and over
    return peak_memory_bytes() - before


def _random_text(vocabulary: int) -> PackedSequences:
    tokens_NT = np.random.default_rng(0).integers(0, vocabulary, (_ROWS, _TOKENS)).astype(np.uint16)
    return PackedSequences(tokens_NT, np.full(_ROWS, _TOKENS, np.int32), np.ones(_ROWS, np.int32))


def _model(vocabulary: int, parameters: int) -> Any:  # noqa: ANN401 - a transformers model
    return build_student(parameters, start="scratch", teacher=None, vocabulary=vocabulary, seed=0)
