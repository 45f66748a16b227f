"""Size, speed and quality of every variant: rows of the table, the charts above it, and bytes by dtype."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from potstill.report import figures
from potstill.report.charts import CHARACTER_PX, Row, colour_of, rows_chart
from potstill.report.summary import Model

__all__ = [
    "ByDtype",
    "Square",
    "VariantPanel",
    "base_of",
    "by_dtype",
    "dtypes_of",
    "find",
    "label_of",
    "reference_of",
    "shipped",
    "square_px",
    "squares",
    "variant_panels",
]

_DTYPES = ("float32", "float16", "int8", "bfloat16", "int4", "q3_k", "q2_k")
_ALWAYS = {"float32", "float16", "int8"}
_ENGINES = {"pytorch": "PyTorch"}
_MAX_LABEL = 30
_SQUARES_PX, _SQUARES_GAP_PX = 560, 26
_SMALLEST_PX, _LARGEST_PX = 80, 190
_NOT_SHIPPED = {"teacher", "twin", "twin-long"}
_PRIORITY = {"gguf": 0, "safetensors": 1}


@dataclass(frozen=True)
class VariantPanel:
    """A chart over all variants."""

    title: str
    unit: str
    drawing: Markup


@dataclass(frozen=True)
class ByDtype:
    """The measured bytes of one model in one format, a dtype a column; None where there is no such file."""

    base: str
    format: str
    bytes: Sequence[float | None]


@dataclass(frozen=True)
class Square:
    """A file as a square: ``side`` is its share of the largest one's, so areas are to scale."""

    label: str
    dtype: str
    bytes: float
    side: float
    colour: str


def base_of(model: Model) -> str:
    """The model's name without its dtype: "student-int8" is a "student"."""
    return model.name.removesuffix(f"-{model.dtype}") if model.dtype else model.name


def label_of(model: Model) -> str:
    """A name for a chart's row: which model, which dtype, in which engine."""
    engine = _ENGINES.get(model.engine, model.engine)
    return " ".join(part for part in (base_of(model), model.dtype) if part) + (f" · {engine}" if engine else "")


def find(models: Iterable[Model], base: str, dtype: str | None = None, format_: str | None = None) -> Model | None:
    """The first model of this base (and dtype, and format), GGUF files before others; None if there is none."""
    fitting = [
        model
        for model in models
        if base_of(model) == base and dtype in (None, model.dtype) and format_ in (None, model.format)
    ]
    return min(fitting, key=lambda model: _PRIORITY.get(model.format, 2), default=None)


def shipped(models: Sequence[Model]) -> Model | None:
    """The file one would ship: of the smallest student, the GGUF before other formats; None if there is none."""
    files = [model for model in models if base_of(model) not in _NOT_SHIPPED and model.bytes]
    if not files:
        return None
    least = min(files, key=lambda model: model.bytes or 0.0)
    return find(files, base_of(least), least.dtype)


def reference_of(models: Sequence[Model]) -> str:
    """Whom agreement and KL are measured against: the teacher, or the student where there is no teacher's model."""
    return "teacher" if any(model.agreement_with_teacher is not None for model in models) else "student"


def squares(models: Sequence[Model]) -> list[Square]:
    """One square per base and dtype, in the order of the models; the twin is as large as the student."""
    chosen: dict[tuple[str, str], Model] = {}
    for model in models:
        found = find(models, base_of(model), model.dtype)
        if found is not None and found.bytes and not base_of(model).startswith("twin"):
            chosen.setdefault((base_of(model), model.dtype), found)
    largest = max((model.bytes or 0 for model in chosen.values()), default=0)
    return [
        Square(base, dtype, model.bytes, (model.bytes / largest) ** 0.5, colour_of(model.name))
        for (base, dtype), model in chosen.items()
        if model.bytes
    ]


def square_px(files: Sequence[Square]) -> int:
    """The side of the largest square, so that all but the pruned ones, which begin a row, stand side by side."""
    sides = [square.side for square in files if square.label != "pruned"]
    room = _SQUARES_PX - _SQUARES_GAP_PX * max(0, len(sides) - 1)
    return round(max(_SMALLEST_PX, min(_LARGEST_PX, room / (sum(sides) or 1.0))))


def by_dtype(models: Sequence[Model]) -> list[ByDtype]:
    """Measured file sizes by dtype, a row per model and format; the twin's would repeat the student's."""
    table: dict[tuple[str, str], dict[str, float | None]] = {}
    for model in models:
        if model.dtype in _DTYPES and model.bytes is not None and not base_of(model).startswith("twin"):
            table.setdefault((base_of(model), model.format), {}).setdefault(model.dtype, model.bytes)
    shown = dtypes_of(models)
    return [ByDtype(base, format_, [sizes.get(name) for name in shown]) for (base, format_), sizes in table.items()]


def dtypes_of(models: Sequence[Model]) -> list[str]:
    """The columns of the table of bytes: float32, float16, int8, then the other dtypes that there are files of."""
    there = {model.dtype for model in models}
    return [name for name in _DTYPES if name in _ALWAYS | there]


def variant_panels(models: Sequence[Model]) -> list[VariantPanel]:
    """The charts there are figures for."""
    reference = reference_of(models)

    def agreement(model: Model) -> float | None:
        return model.agreement_with_teacher if reference == "teacher" else model.agreement_with_student

    panels = [
        _panel("bytes", "Size of the file", "MB", models, lambda m: _mega(m.bytes), lambda m: figures.size(m.bytes)),
        _panel(
            "perplexity",
            "Perplexity on held-out text",
            "lower is better; line: 95 % interval",
            models,
            lambda m: m.perplexity,
            lambda m: figures.decimal(m.perplexity),
            interval=True,
        ),
        _panel(
            "agreement",
            f"Agreement with the {reference}",
            "share of held-out positions",
            models,
            agreement,
            lambda m: figures.share(agreement(m)),
        ),
        _panel(
            "prefill",
            "Reading the prompt (prefill)",
            "tokens/s",
            models,
            lambda m: m.prefill_tokens_per_s,
            lambda m: _number(figures.rate(m.prefill_tokens_per_s)),
        ),
        _panel(
            "decode",
            "Writing the answer (decode)",
            "tokens/s",
            models,
            lambda m: m.decode_tokens_per_s,
            lambda m: _number(figures.rate(m.decode_tokens_per_s)),
        ),
        _panel(
            "memory",
            "Peak memory",
            "MB",
            models,
            lambda m: _mega(m.peak_memory_bytes),
            lambda m: figures.size(m.peak_memory_bytes),
        ),
    ]
    return [panel for panel in panels if panel is not None]


def _panel(
    name: str,
    title: str,
    unit: str,
    models: Sequence[Model],
    value: Callable[[Model], float | None],
    write: Callable[[Model], str],
    *,
    interval: bool = False,
) -> VariantPanel | None:
    rows = [
        Row(_short_label(model), colour_of(model.name), found, write(model), _interval(model) if interval else None)
        for model in models
        if (found := value(model)) is not None
    ]
    label_width = max((len(_short_label(model)) for model in models), default=0) * CHARACTER_PX
    said = "; ".join(f"{row.label} {row.text}" for row in rows)
    drawing = rows_chart(
        f"rows-{name}", rows, alternative=f"{title}, {unit}: {said}.", from_zero=not interval, label_width=label_width
    )
    return None if drawing is None else VariantPanel(title, unit, drawing)


def _short_label(model: Model) -> str:
    label = label_of(model)
    return label if len(label) <= _MAX_LABEL else label[: _MAX_LABEL - 1] + "…"


def _interval(model: Model) -> tuple[float, float] | None:
    bounds = model.perplexity_interval_95
    if bounds is None or len(bounds) != 2 or bounds[0] is None or bounds[1] is None:
        return None
    return bounds[0], bounds[1]


def _mega(value: float | None) -> float | None:
    return None if value is None else value / 1e6


def _number(text: str) -> str:
    return text.split("\u00a0", maxsplit=1)[0]
