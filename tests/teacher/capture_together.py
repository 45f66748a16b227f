"""A program that captures labels as one of the processes of torchrun: settings, then data, teacher and out.

Beside ``out`` each process leaves a list of the ranges that it wrote.
"""

import json
import sys
import warnings
from pathlib import Path

import torch

from potstill.core.trace import Trace
from potstill.core.world import joined
from potstill.labels.store import LabelWriter
from potstill.teacher.capture import capture_labels
from potstill.teacher.settings import CaptureSettings

written: list[list[int]] = []


class Noting(LabelWriter):
    """The real writer, and a note of what it wrote."""

    def write(self, rows, parts) -> None:
        written.append([rows.start, rows.stop])
        super().write(rows, parts)


if __name__ == "__main__":
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    capture_labels.__globals__["LabelWriter"] = Noting
    settings = CaptureSettings.model_validate_json(sys.argv[1])
    data, teacher, out = (Path(argument) for argument in sys.argv[2:])
    with joined("cpu") as world:
        capture_labels(settings, {"data": data, "teacher": teacher}, out, Trace())
        out.with_name(f"{out.name}-{world.rank}.json").write_text(json.dumps(written))
