"""Quantize and export one model, without a recipe: the work behind ``potstill quantize``."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from potstill.core import interrupt
from potstill.core.durable import read_json, write_json
from potstill.core.errors import RecipeError
from potstill.core.memory import peak_memory_bytes, reset_peak_memory
from potstill.core.settings import Settings
from potstill.core.trace import Event, Trace, num_fallbacks, read_trace, texts_told
from potstill.data.settings import DataSettings, Files
from potstill.export.settings import Export
from potstill.pipeline import held_alone
from potstill.quantize.settings import Scheme, calibration_of, label_of, text_tokens_of

__all__ = ["QuantizeSettings", "quantize_one_model"]

_TOKENS_PER_ROW = 512
_SHORTEST_ROW = 16


class QuantizeSettings(Settings):
    """What ``potstill quantize`` is told: a scheme, formats, and for calibrated methods files of text."""

    scheme: Scheme
    export: Annotated[tuple[Export, ...], Field(strict=False)] = ()
    data: Files | None = None


def quantize_one_model(
    settings: QuantizeSettings, model: str | Path, out: Path, *, listeners: Sequence[Callable[[Event], None]] = ()
) -> dict[str, Any]:
    """Write ``out/NAME-LABEL/``, the quantized directory, and beside it ``NAME-LABEL.SUFFIX`` in each format.

    NAME is the model's directory, with _ for -, for a label begins at the first -.

    Killed and called again with the same arguments, it goes on at the block it was at. ``summary.json`` holds what is
    returned, ``trace.jsonl`` what was told on the way.

    Raises: RecipeError: a calibrated method without text. InputError: the model or the text can't be read.
    RunDirectoryError: another process works in ``out``.
    """
    from potstill.export.stage import check_exports, export_variants  # noqa: PLC0415 - torch, only when there is work
    from potstill.model.directory import check_model, check_tokenizer, locate  # noqa: PLC0415
    from potstill.quantize.stage import quantize_model  # noqa: PLC0415

    num_tokens = text_tokens_of(settings.scheme)
    if num_tokens and settings.data is None:
        method = calibration_of(settings.scheme)
        what = "keep_sensitive" if method is None else f"method {type(method).model_fields['kind'].default}"
        raise RecipeError(f"{what} looks at text, and there is none", next_step="add --data FILE, or take --method rtn")
    source = locate(model)
    check_model(source)
    check_exports(settings.export, read_json(source / "config.json"), str(source))
    if settings.export or num_tokens:
        check_tokenizer(source)
    variant = f"{source.resolve().name.replace('-', '_')}-{label_of(settings.scheme)}"
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with held_alone(out), interrupt.watching():
        (out / "trace.jsonl").unlink(missing_ok=True)
        trace = Trace(out / "trace.jsonl", stage="quantize", listeners=listeners, tags={"variant": variant})
        reset_peak_memory()
        text = _text_of(settings, num_tokens, source, trace) if num_tokens else None
        quantize_model(settings.scheme, source, out / variant, trace, text)
        export_variants(settings.export, {variant: out / variant}, out, trace.for_stage("export"))
        summary = _summary(settings, source, out, variant)
        summary |= {"seconds": round(time.perf_counter() - started, 3), "peak_memory_bytes": peak_memory_bytes()}
        write_json(out / "summary.json", summary)
    return summary


def _text_of(settings: QuantizeSettings, num_tokens: int, source: Path, trace: Trace) -> Any:  # noqa: ANN401
    """Rows of the files, cut by the model's own tokenizer, as long as its context allows."""
    from potstill.data.packing import pack  # noqa: PLC0415
    from potstill.data.passages import BadInput  # noqa: PLC0415
    from potstill.data.sources import read_passages  # noqa: PLC0415
    from potstill.data.splits import distinct_paragraphs  # noqa: PLC0415
    from potstill.data.tokenizer import TextCoder  # noqa: PLC0415
    from potstill.model.store import load_tokenizer  # noqa: PLC0415
    from potstill.quantize.calibration import draw_text  # noqa: PLC0415

    assert settings.data is not None  # noqa: S101 - the caller refused that
    data = DataSettings(source=settings.data)
    bad = BadInput(data.on_bad_input)
    coder = TextCoder.of(load_tokenizer(source), where=str(source))
    context = int(read_json(source / "config.json").get("max_position_embeddings") or _TOKENS_PER_ROW)
    paragraphs, _ = distinct_paragraphs(read_passages(data, bad))
    packed = pack(
        paragraphs,
        coder,
        tokens_per_row=min(_TOKENS_PER_ROW, context),
        shortest=_SHORTEST_ROW,
        most_rows=max(1, num_tokens // _SHORTEST_ROW),
    )
    return draw_text(packed.rows, num_tokens, trace)


def _summary(settings: QuantizeSettings, source: Path, out: Path, variant: str) -> dict[str, Any]:
    events = read_trace(out / "trace.jsonl")
    metrics = {event["name"]: event["value"] for event in events if event["kind"] == "metric"}
    files = sorted(path for path in out.glob(f"{variant}.*") if not path.name.endswith(".partial"))
    return {
        "model": str(source),
        "label": label_of(settings.scheme),
        "directory": str(out / variant),
        "files": [
            {
                "path": str(path),
                "bytes": _bytes_of(path),
                "fallbacks": num_fallbacks(events, variant, path.name.removeprefix(f"{variant}.")),
            }
            for path in files
        ],
        "weights_bytes_before": metrics["weights_bytes_before"],
        "weights_bytes_after": metrics["weights_bytes_after"],
        "weight_error_relative": metrics["weight_error_relative"],
        "calibration_tokens": metrics.get("calibration_tokens"),
        "warnings": texts_told(events, "warning"),
        "fallbacks": texts_told(events, "fallback"),
    }


def _bytes_of(path: Path) -> int:
    """The size of a file, or of all files of a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
