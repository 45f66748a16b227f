"""The two forms of chart on the page: curves over epochs, and one row a variant.

Both label directly, at the line's end or the bar's, so no eye has to travel to a legend. A model keeps its colour
throughout the page.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import altair as alt
from markupsafe import Markup

from potstill.report.svg import draw

__all__ = ["CHARACTER_PX", "Curve", "Row", "colour_of", "curves", "rows_chart", "spread"]

_CURVE_COLUMNS = (32, 152, 62)
_CURVE_HEIGHT = 150
_ROW_WIDTH, _ROW_HEIGHT, _ROW_VALUE_WIDTH = 120, 21, 56
_LABEL_GAP_PX = 13
CHARACTER_PX = 6.4
"""The width of a character of a chart's text, on the wide side: fonts differ from one reader's machine to the next."""


@dataclass(frozen=True)
class Curve:
    """One line: a name shown at its end, a colour of the page, and (epoch, value) points."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


@dataclass(frozen=True)
class Row:
    """One variant's value, what is written beside it, and its 95 % interval if it has one."""

    label: str
    colour: str
    value: float
    text: str
    interval: tuple[float, float] | None = None


def colour_of(name: str) -> str:
    """The page's colour for a model or a variant, as a CSS variable."""
    if "int8" in name or "int4" in name:
        return "var(--int8)"
    for word in ("teacher", "twin", "pruned"):
        if name.startswith(word):
            return f"var(--{word})"
    return "var(--student)"


def curves(name: str, lines: Sequence[Curve], *, alternative: str, write: Callable[[float], str]) -> Markup | None:
    """Curves over epochs; None when no line has a point. ``write`` puts a value in words with its unit."""
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    values = [value for line in lines for _, value in line.points]
    domain = _padded(min(values), max(values))
    epochs = sorted({epoch for line in lines for epoch, _ in line.points})
    layers: list[alt.Chart] = []
    for line in lines:
        data = alt.InlineData(
            values=[
                {"epoch": epoch, "value": value, "tip": f"{line.name}, epoch {epoch:g}: {write(value)}"}
                for epoch, value in line.points
            ]
        )
        base = alt.Chart(data).encode(
            x=alt.X("epoch:Q", scale=alt.Scale(domain=_span(epochs)), axis=_epoch_axis(epochs)),
            y=alt.Y("value:Q", scale=alt.Scale(domain=domain, nice=False), axis=alt.Axis(title=None, tickCount=4)),
        )
        dash = [4, 3] if line.dashed else [1, 0]
        layers.append(base.mark_line(color=line.colour, strokeWidth=2, strokeDash=dash, aria=False))
        points = base.mark_point(filled=True, fill=line.colour, opacity=1, size=28)
        layers.append(points.encode(description="tip:N"))
    layers.append(_end_labels(lines, domain))
    chart = alt.layer(*layers).properties(width=_CURVE_COLUMNS[1], height=_CURVE_HEIGHT)
    return draw(chart.to_dict(), name=name, alternative=alternative, columns=_CURVE_COLUMNS)


def rows_chart(
    name: str, rows: Sequence[Row], *, alternative: str, from_zero: bool, label_width: float
) -> Markup | None:
    """A row a variant: a bar from zero, or a dot with its interval where zero means nothing; None without rows.

    ``label_width`` is what the longest name needs in pixels, the same for all charts that stand together.
    """
    if not rows:
        return None
    low = 0.0 if from_zero else min(row.interval[0] if row.interval else row.value for row in rows)
    high = max(row.interval[1] if row.interval else row.value for row in rows)
    domain = [0.0, high or 1.0] if from_zero else _padded(low, high)
    # Bars carry their values, so an axis would say everything twice.
    axis = None if from_zero else alt.Axis(title=None, tickCount=3)
    scale = alt.Scale(domain=domain, nice=False)
    base = alt.Chart(alt.InlineData(values=[_row_values(row, number, low) for number, row in enumerate(rows)])).encode(
        x=alt.X("value:Q", scale=scale, axis=axis),
        y=alt.Y("row:O", sort=None, axis=None),
        color=alt.Color("colour:N", scale=None),
    )
    chart = alt.layer(
        *(_bars(base) if from_zero else _dots(base, alt.X("low:Q", scale=scale, axis=axis))),
        _text(base, "left", 6).encode(x=alt.X("high:Q", scale=scale, axis=axis), text="text:N"),
        _text(base, "right", -8).encode(x=alt.datum(domain[0], type="quantitative"), text="label:N"),
    ).properties(width=_ROW_WIDTH, height=_ROW_HEIGHT * len(rows))
    margins = (label_width + 10, _ROW_WIDTH, _ROW_VALUE_WIDTH)
    return draw(chart.to_dict(), name=name, alternative=alternative, columns=margins)


def _text(base: alt.Chart, align: Literal["left", "right"], dx: float) -> alt.Chart:
    text: alt.Chart = base.mark_text(align=align, dx=dx, baseline="middle", fill="var(--ink)", aria=False)
    return text


def _bars(base: alt.Chart) -> list[alt.Chart]:
    return [base.mark_bar(height=9, cornerRadiusEnd=1).encode(description="tip:N")]


def _dots(base: alt.Chart, low: alt.X) -> list[alt.Chart]:
    rule = base.mark_rule(strokeWidth=2, opacity=0.5, aria=False).encode(x=low, x2="high:Q")
    return [rule, base.mark_point(filled=True, opacity=1, size=46).encode(description="tip:N")]


def spread(values: Sequence[float], domain: Sequence[float], height_px: float, gap_px: float) -> list[float]:
    """Move labels apart so that neighbours stand ``gap_px`` from one another, each as near its value as it can."""
    scale = height_px / (domain[1] - domain[0])
    order = sorted(range(len(values)), key=values.__getitem__)
    placed = [values[index] * scale for index in order]
    for _ in range(len(placed)):
        for below in range(len(placed) - 1):
            lack = gap_px - (placed[below + 1] - placed[below])
            if lack > 1e-9:
                placed[below] -= lack / 2
                placed[below + 1] += lack / 2
    result = [0.0] * len(values)
    for position, index in enumerate(order):
        result[index] = placed[position] / scale
    return result


def _end_labels(lines: Sequence[Curve], domain: Sequence[float]) -> alt.Chart:
    ends = [line.points[-1] for line in lines]
    heights = spread([value for _, value in ends], domain, _CURVE_HEIGHT, _LABEL_GAP_PX)
    values: list[Mapping[str, object]] = [
        {"epoch": epoch, "value": height, "name": line.name, "colour": line.colour}
        for line, (epoch, _), height in zip(lines, ends, heights, strict=True)
    ]
    text = alt.Chart(alt.InlineData(values=values)).mark_text(align="left", dx=8, fontSize=12, aria=False)
    labels: alt.Chart = text.encode(x="epoch:Q", y="value:Q", text="name:N", color=alt.Color("colour:N", scale=None))
    return labels


def _row_values(row: Row, number: int, low: float) -> dict[str, object]:
    interval = row.interval or (row.value, row.value)
    return {
        "row": number,
        "value": row.value,
        "low": max(interval[0], low),
        "high": interval[1],
        "colour": row.colour,
        "label": row.label,
        "text": row.text,
        "tip": f"{row.label}: {row.text}",
    }


def _padded(low: float, high: float) -> list[float]:
    room = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
    return [low - room if low < 0 or low - room > 0 else 0.0, high + room]


def _span(epochs: Sequence[float]) -> list[float]:
    return [epochs[0], epochs[-1]] if epochs[0] != epochs[-1] else [epochs[0] - 0.5, epochs[0] + 0.5]


def _epoch_axis(epochs: Sequence[float]) -> alt.Axis:
    step = max(1, round(len(epochs) / 5))
    ticks = [epoch for epoch in epochs if (epoch - epochs[0]) % step == 0 and epoch == int(epoch)]
    return alt.Axis(title="epoch", grid=False, format="d", values=ticks, titleAnchor="end")
