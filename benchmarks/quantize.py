"""What does quantizing cost, and does every file do what its codes say? ``python benchmarks/quantize.py WHAT RUN``.

RUN is the folder of a run with a teacher and a student, ``runs/lesson`` as its recipe makes it.

``methods``: int4 in groups of 128 by every method, int8, and what each loses on the test rows against round-to-nearest.
``parity``: from one set of codes four files, each scored in its own runtime against PyTorch on the same codes.
``speed``: the student's files against the teacher in PyTorch float32: decoding, prefill and bytes.
``time``: GPTQ of the teacher on 128 rows of 512 tokens: seconds and peak memory.

Results go to benchmarks/results/quantize_PROCESSOR-CORES_DATE/WHAT.json.
"""

import argparse
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from results_folder import results_folder

from potstill.bench import bench
from potstill.core.hardware import cores_usable
from potstill.core.memory import peak_memory_bytes, reset_peak_memory
from potstill.core.settings import parse_settings
from potstill.core.trace import Trace
from potstill.data.sequences import PackedSequences
from potstill.evaluate.bootstrap import paired_difference
from potstill.evaluate.likelihood import Scores, score
from potstill.evaluate.speed import Work
from potstill.export.stage import export_variants
from potstill.one_model import QuantizeSettings
from potstill.quantize.calibration import CalibrationText, draw_text
from potstill.quantize.settings import calibration_of, label_of
from potstill.quantize.stage import quantize_model
from potstill.runtime.table import open_engine

FORMATS = ("gguf", "onnx", "openvino", "compressed-tensors")
_RESAMPLES, _TEST_ROWS = 2_000, 500
_CALIBRATION_ROWS, _CALIBRATION_TOKENS = 128, 512


def main() -> None:
    """Measure one of the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["methods", "parity", "speed", "time"])
    parser.add_argument("run", type=Path)
    parser.add_argument("--scratch", type=Path, default=Path("runs/quantize-benchmark"))
    asked = parser.parse_args()
    asked.scratch.mkdir(parents=True, exist_ok=True)
    measure = {"methods": methods, "parity": parity, "speed": speed, "time": time_of_gptq}[asked.what]
    result = measure(asked.run, asked.scratch)
    text = json.dumps(result, indent=1) + "\n"
    path = results_folder("quantize") / f"{asked.what}.json"
    path.write_text(text, encoding="utf-8")
    print(text, f"kept in {path}", sep="")


def methods(run: Path, scratch: Path) -> list[dict[str, Any]]:
    """A row for each variant: perplexity, and nats against float32 and against round-to-nearest on the same grid."""
    student, rows = _student(run), _test_rows(run)
    schemes = [
        {"scheme": "int8"},
        *({"scheme": "int4", "group": 128, "method": kind} for kind in ("rtn", "search", "gptq", "awq")),
        *({"scheme": "int4", "group": 32, "method": kind} for kind in ("rtn", "gptq")),
    ]
    variants = dict(_quantized(run, student, scheme, scratch) for scheme in schemes)
    scores = _scores({"float32": student, **variants}, rows, "float32")
    return [_row(label, scores) for label in scores]


def _row(label: str, scores: Mapping[str, Scores]) -> dict[str, Any]:
    grid, _, method = label.rpartition("-")
    nearest = f"{grid}-rtn"
    against = {"float32": "float32"} | ({nearest: "rtn"} if nearest in scores and method != "rtn" else {})
    row: dict[str, Any] = {"variant": label, "perplexity": scores[label].perplexity}
    row["perplexity_over_float32"] = scores[label].perplexity / scores["float32"].perplexity
    row["kl_from_float32_nats"] = scores[label].reference_kl_nats
    for other, name in against.items():
        difference, low, high = paired_difference(scores[label], scores[other], seed=0, num_resamples=_RESAMPLES)
        row |= {f"nats_over_{name}": difference, f"nats_over_{name}_interval_95": [low, high]}
        if name == "rtn":
            pair = [replace(scores[one], nats_N=scores[one].reference_kl_N) for one in (label, other)]
            difference, low, high = paired_difference(*pair, seed=0, num_resamples=_RESAMPLES)
            row |= {"kl_over_rtn": difference, "kl_over_rtn_interval_95": [low, high]}
    return row


def parity(run: Path, scratch: Path) -> list[dict[str, Any]]:
    """A row for each scheme and file: perplexity and agreement in its runtime against PyTorch on the same codes."""
    student, rows = _student(run), _test_rows(run)
    table = []
    for scheme in ({"scheme": "int8"}, {"scheme": "int4", "group": 32}, {"scheme": "int8-channel"}):
        label, directory = _quantized(run, student, scheme, scratch)
        files = _exported(directory, scratch, FORMATS if label != "int8-channel" else FORMATS[1:])  # no gguf of W8A8
        scores = _scores({"pytorch": directory, **files}, rows, "pytorch")
        table += [
            {
                "scheme": label,
                "format": name,
                "positions": scores[name].num_scored,
                "perplexity": scores[name].perplexity,
                "perplexity_over_pytorch": scores[name].perplexity / scores["pytorch"].perplexity,
                "agreement_with_pytorch": scores[name].agreement,
                "kl_from_pytorch_nats": scores[name].reference_kl_nats,
            }
            for name in scores
        ]
    return table


def speed(run: Path, scratch: Path) -> dict[str, Any]:
    """Rates of all files, interleaved, and each file's bytes and decoding as ratios to the teacher's fastest."""
    teacher, student = run / "stages" / "02-teacher" / "model", _student(run)
    models = {"teacher float32": teacher, "student float32": student}
    for scheme, formats in (
        ({"scheme": "int8"}, ("gguf", "onnx", "openvino")),
        ({"scheme": "int8-channel"}, ("onnx", "openvino")),
        ({"scheme": "int4", "group": 32}, ("gguf", "openvino")),
    ):
        label, directory = _quantized(run, student, scheme, scratch)
        models |= {f"student {label} {name}": path for name, path in _exported(directory, scratch, formats).items()}
    result = bench(models, Work(prompt_tokens=256, new_tokens=128, rounds=7), threads=[1, cores_usable()])
    of_teacher = [row for row in result["models"] if row["model"] == "teacher float32"]
    base = max(of_teacher, key=lambda row: row["decode_tokens_per_s"])
    for row in result["models"]:
        row["decode_over_teacher"] = row["decode_tokens_per_s"] / base["decode_tokens_per_s"]
        row["bytes_of_teacher_over_own"] = base["bytes"] / row["bytes"]
    return result


def time_of_gptq(run: Path, scratch: Path) -> dict[str, Any]:
    """Seconds and peak memory of GPTQ at int4 in groups of 128."""
    train = PackedSequences.load(run / "stages" / "01-data", "train")
    mask_NT = np.arange(train.tokens_per_sequence) < np.asarray(train.lengths_N)[:, None]
    tokens = np.asarray(train.tokens_NT)[mask_NT].astype(np.int64)[: _CALIBRATION_ROWS * _CALIBRATION_TOKENS]
    tokens_NT = tokens.reshape(_CALIBRATION_ROWS, _CALIBRATION_TOKENS)
    text = CalibrationText(tokens_NT, np.full(_CALIBRATION_ROWS, _CALIBRATION_TOKENS, dtype=np.int64))
    scheme = _scheme({"scheme": "int4", "group": 128, "method": "gptq"})
    out = scratch / "gptq-time"
    shutil.rmtree(out, ignore_errors=True)
    reset_peak_memory()
    start = time.perf_counter()
    quantize_model(scheme, run / "stages" / "02-teacher" / "model", out, Trace(), text)
    return {
        "model": "the run's teacher",
        "calibration": [_CALIBRATION_ROWS, _CALIBRATION_TOKENS],
        "seconds": time.perf_counter() - start,
        "peak_bytes": peak_memory_bytes(),
    }


def _student(run: Path) -> Path:
    return run / "stages" / "04-student" / "model"


def _test_rows(run: Path) -> PackedSequences:
    return PackedSequences.load(run / "stages" / "01-data", "test").first(_TEST_ROWS)


def _scheme(settings: Mapping[str, Any]) -> Any:  # noqa: ANN401 - one of many schemes
    return parse_settings(QuantizeSettings, {"scheme": dict(settings)}, source="benchmark").scheme


def _quantized(run: Path, model: Path, settings: Mapping[str, Any], scratch: Path) -> tuple[str, Path]:
    scheme = _scheme(settings)
    label = label_of(scheme)
    out, method = scratch / f"student-{label}", calibration_of(scheme)
    if not (out / "config.json").exists():
        train = PackedSequences.load(run / "stages" / "01-data", "train")
        text = method and draw_text(train, method.calibration_tokens, Trace())
        quantize_model(scheme, model, out, Trace(), text)
    return label if settings.get("method") != "rtn" else f"{label}-rtn", out


def _exported(directory: Path, scratch: Path, formats: Sequence[str]) -> dict[str, Path]:
    exports = parse_settings(
        QuantizeSettings,
        {"scheme": {"scheme": "int8"}, "export": [{"format": name} for name in formats]},
        source="benchmark",
    ).export
    export_variants(exports, {directory.name: directory}, scratch, Trace())
    return {name: next(scratch.glob(f"{directory.name}.{name}*")) for name in formats}


def _scores(models: Mapping[str, Path], rows: PackedSequences, reference: str) -> dict[str, Scores]:
    with ExitStack() as stack:
        engines = {name: stack.enter_context(open_engine(path)) for name, path in models.items()}
        return score(engines, reference, rows, Trace())


if __name__ == "__main__":
    main()
