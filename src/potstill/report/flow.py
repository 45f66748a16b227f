# ruff: noqa: RUF001 - typographic characters are meant
"""The way of the data as stations to draw: text, tokens, teacher, soft labels, student, (prune), small files.

Each station is drawn from the run's own figures: words by their length, models and files by area, the soft label by
its probabilities. A station nothing was recorded for is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from potstill.report import figures
from potstill.report.summary import Described, LabelExample, Prediction, Stage, Summary
from potstill.report.variants import find, shipped

__all__ = ["Bar", "Glyph", "Station", "family", "flow", "plain_example", "shape_of"]

GLYPH_WIDTH, GLYPH_HEIGHT = 120.0, 76.0
_FAMILIES = ("data", "teacher", "labels", "student", "prune", "quantize", "export", "evaluate")
_MAX_EXAMPLE = 120


@dataclass(frozen=True)
class Bar:
    """A rectangle of a glyph; ``style`` is a class: "fill", "outline", "faint"."""

    x: float
    y: float
    width: float
    height: float
    style: str = "fill"


@dataclass(frozen=True)
class Glyph:
    """A small drawing of 120 x 76 units, in the colour of its station."""

    bars: Sequence[Bar] = ()
    path: str = ""


@dataclass(frozen=True)
class Station:
    """One station: its name, what it is in figures, its type, and a real example of this run."""

    name: str
    colour: str
    figure: str
    dtype: str
    example: str
    glyph: Glyph = field(default_factory=Glyph)


def family(stage: Stage) -> str:
    """Which of potstill's steps a stage is, whatever number or suffix its name carries; "" for none of them."""
    name = stage.name.lstrip("0123456789-_ ").lower()
    return next((step for step in _FAMILIES if name.startswith(step.rstrip("s"))), "")


def shape_of(described: Described) -> str:
    """A shape as it is written: "[4,000 x 50]"; "" for a single thing."""
    return f"[{' × '.join(f'{length:,}' for length in described.shape)}]" if described.shape else ""


def plain_example(example: object, limit: int = _MAX_EXAMPLE) -> str:
    """An example in one line: text as it is, numbers with commas, the rest as Python would write it."""
    if example is None:
        return ""
    if isinstance(example, list | tuple):
        text = ", ".join(plain_example(part, limit) for part in example[:16]) + (", …" if len(example) > 16 else "")
        text = f"[{text}]"
    elif isinstance(example, dict):
        text = "{" + ", ".join(f"{key}: {plain_example(part, limit)}" for key, part in list(example.items())[:8]) + "}"
    elif isinstance(example, float):
        text = figures.decimal(example)
    else:
        text = str(example)
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def flow(summary: Summary) -> list[Station]:
    """The stations of this run in the order the data passes them."""
    by_family = {step: [stage for stage in summary.stages if family(stage) == step] for step in _FAMILIES}
    stations = [
        _text(summary, by_family["data"]),
        _tokens(summary, by_family["data"]),
        _model(summary, "teacher", "teacher", by_family["teacher"]),
        _labels(summary, by_family["labels"]),
        _model(summary, "student", "student", by_family["student"]),
        _model(summary, "pruned", "prune", by_family["prune"]),
        _quantized(summary),
        _file(summary),
    ]
    return [station for station in stations if station is not None]


def _text(summary: Summary, stages: Sequence[Stage]) -> Station | None:
    given = _first_text(stages) or str((summary.data or {}).get("example") or "")
    if not given:
        return None
    text = (summary.data or {}).get("text")
    total = text.get("sentences") if isinstance(text, dict) else None
    figure = f"{figures.count(total)} sentences" if isinstance(total, int | float) and total else "text"
    return Station("text", "var(--ink)", figure, "UTF-8", plain_example(given), Glyph(_words(given)))


def _tokens(summary: Summary, stages: Sequence[Stage]) -> Station | None:
    recorded = next(
        (item for stage in stages for item in stage.outputs if len(item.shape) == 2 and "int" in item.dtype), None
    )
    prompt = summary.predictions[0] if summary.predictions else None
    if recorded is None and prompt is None:
        return None
    figure = shape_of(recorded) if recorded is not None else f"[{len(prompt.tokens) if prompt else 0}]"
    example = _ids(recorded.example) if recorded is not None else ""
    if not example and prompt is not None:
        example = plain_example([token.id for token in prompt.tokens], 70)
    bars = _pieces(prompt) if prompt is not None and prompt.tokens else _grid()
    return Station("tokens", "var(--ink)", figure, recorded.dtype if recorded else "ids", example, Glyph(bars))


def _model(summary: Summary, base: str, name: str, stages: Sequence[Stage]) -> Station | None:
    model = find(summary.models, base, "float32") or find(summary.models, base)
    if model is None and not stages:
        return None
    parameters = None if model is None else model.parameters
    largest = max((one.parameters or 0.0 for one in summary.models), default=0.0)
    glyph = Glyph(_square((parameters / largest) ** 0.5 if parameters and largest else 0.5))
    if base == "student" and summary.predictions and summary.predictions[0].blocks:
        glyph = Glyph([*glyph.bars, *_layers(glyph.bars[0], len(summary.predictions[0].blocks) - 1)])
    if base == "pruned":
        parent = find(summary.models, "student", "float32")
        if parent is not None and parent.parameters and largest:
            outline = _square((parent.parameters / largest) ** 0.5, "outline")
            glyph = Glyph([*outline, *glyph.bars])
    figure = f"{figures.count(parameters)} parameters" if parameters else "a model"
    example = _said_by(summary.predictions, base) or _first_example(stages)
    dtype = model.dtype if model is not None else ""
    colour = {"teacher": "var(--teacher)", "pruned": "var(--pruned)"}.get(base, "var(--student)")
    return Station(name, colour, figure, dtype, example, glyph)


def _labels(summary: Summary, stages: Sequence[Stage]) -> Station | None:
    example, labels = summary.label_example, summary.labels
    if example is None and labels is None and not stages:
        return None
    tokens = None if labels is None else labels.tokens
    figure = f"{figures.count(tokens)} positions" if tokens else "one distribution a position"
    cost = ""
    if labels is not None and labels.bytes_per_token is not None:
        cost = f"{figures.decimal(labels.bytes_per_token)} B a position"
    said = _as_dictionary(example) if example is not None and example.entries else _first_example(stages)
    return Station("soft labels", "var(--teacher)", figure, cost, said, Glyph(_histogram(example)))


def _quantized(summary: Summary) -> Station | None:
    model = find(summary.models, "pruned", "int8") or find(summary.models, "student", "int8")
    if model is None:
        return None
    steps = "".join(f"h13v{-60 / 8:.2f}" for _ in range(8))
    example = _said_by(summary.predictions, model.name)
    figure = "255 steps, one scale per 32 weights"
    return Station("int8", "var(--int8)", figure, "int8", example, Glyph(path=f"M8,68{steps}"))


def _file(summary: Summary) -> Station | None:
    small = shipped(summary.models)
    if small is None or small.bytes is None:
        return None
    path = "M42,8h26l12,12v48h-38zM68,8v12h12"
    speed = f"writes {figures.rate(small.decode_tokens_per_s)}" if small.decode_tokens_per_s else ""
    return Station("file", "var(--int8)", figures.size(small.bytes), small.format.upper(), speed, Glyph(path=path))


def _ids(example: object) -> str:
    ids = example.get("tokens") if isinstance(example, dict) else example
    return plain_example(ids, 70)


def _first_text(stages: Sequence[Stage]) -> str:
    items = (item for stage in stages for item in stage.inputs)
    return next((item.example for item in items if isinstance(item.example, str)), "")


def _first_example(stages: Sequence[Stage]) -> str:
    return next((plain_example(item.example) for stage in stages for item in stage.outputs if item.example), "")


def _said_by(predictions: Sequence[Prediction], name: str) -> str:
    for prediction in predictions:
        candidates = prediction.candidates.get(name)
        if candidates:
            top = max(candidates, key=lambda candidate: candidate.probability or 0.0)
            words = prediction.prompt.split()
            start = "… " if len(words) > 3 else ""
            return f"“{start}{' '.join(words[-3:])}” → “{top.token.strip()}” {figures.probability(top.probability)}"
    return ""


def _as_dictionary(example: LabelExample) -> str:
    named = ", ".join(f"“{one.token.strip()}”: {figures.probability(one.probability)}" for one in example.entries[:3])
    return f"{{{named}, …}}"


def _words(text: str) -> list[Bar]:
    bars: list[Bar] = []
    x, y = 6.0, 8.0
    for word in text.split()[:60]:
        width = min(2.6 * len(word), 60.0)
        if x + width > GLYPH_WIDTH - 6:
            x, y = 6.0, y + 12
        if y > GLYPH_HEIGHT - 14:
            break
        bars.append(Bar(round(x, 1), y, round(width, 1), 4, "fill"))
        x += width + 4
    return bars


def _pieces(prompt: Prediction) -> list[Bar]:
    bars: list[Bar] = []
    x, y = 6.0, 8.0
    for token in prompt.tokens[:40]:
        width = min(6.0 + 3.0 * len(token.text.strip()), 60.0)
        if x + width > GLYPH_WIDTH - 6:
            x, y = 6.0, y + 17
        if y > GLYPH_HEIGHT - 16:
            break
        bars.append(Bar(round(x, 1), y, round(width, 1), 11, "outline"))
        x += width + 4
    return bars


def _grid() -> list[Bar]:
    return [Bar(10.0 + 17 * column, 8.0 + 16 * row, 14, 11, "outline") for row in range(4) for column in range(6)]


def _square(side_share: float, style: str = "fill") -> list[Bar]:
    side = max(4.0, round(64 * side_share, 1))
    return [Bar(round((GLYPH_WIDTH - side) / 2, 1), round(70 - side, 1), side, side, style)]


def _layers(square: Bar, num_blocks: int) -> list[Bar]:
    step = square.height / (num_blocks + 1) if num_blocks > 0 else 0.0
    return [
        Bar(square.x, round(square.y + step * number, 1), square.width, 1, "gap")
        for number in range(1, num_blocks + 1)
        if step > 3
    ]


def _histogram(example: LabelExample | None) -> list[Bar]:
    if example is None or not example.entries:
        return []
    heights = [entry.probability or 0.0 for entry in example.entries[:10]]
    highest = max([*heights, example.tail_mass or 0.0]) or 1.0
    bars = [
        Bar(8.0 + 9 * place, round(70 - 60 * height / highest, 1), 6, round(60 * height / highest, 1))
        for place, height in enumerate(heights)
    ]
    if example.tail_mass:
        height = round(60 * example.tail_mass / highest, 1)
        bars.append(Bar(104.0, round(70 - height, 1), 8, height, "outline"))
    return bars
