"""The page: one HTML file made of a run's summary.json, trace.jsonl and recipe.yaml, and of nothing else.

It asks nothing of the network and needs no script to be read: charts are SVG, answers open by themselves. The one
small script shows what a mark stands for at once instead of after the browser's delay; the page's own policy lets no
other run.
"""

import base64
import hashlib
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from potstill.core.durable import write_text
from potstill.report import figures
from potstill.report.charts import colour_of
from potstill.report.doubts import doubts
from potstill.report.flow import flow, plain_example, shape_of
from potstill.report.headline import headline
from potstill.report.prediction import PredictionView, Strip, prediction_view
from potstill.report.questions import questions
from potstill.report.softlabels import label_view
from potstill.report.summary import Described, Run, Stage, read_run
from potstill.report.text import visible
from potstill.report.training import cross_entropy_of, panels, tables
from potstill.report.variants import by_dtype, dtypes_of, label_of, reference_of, square_px, squares, variant_panels

__all__ = ["build_report", "render"]

_PACKAGE = "potstill.report"


def build_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run directory and return its path.

    Same files in, same bytes out. Parts that the run didn't make are left out; figures that contradict one another
    are named on the page.

    Raises: InputError: summary.json is missing, or holds something else than its keys promise.
    """
    path = run_dir / "report.html"
    write_text(path, render(read_run(run_dir)))
    return path


def render(run: Run) -> str:
    """The page's HTML."""
    script = _resource("page.js")
    summary = run.summary
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            summary=summary,
            headline=headline(summary),
            when=_when(run),
            squares=(files := squares(summary.models)),
            square_px=square_px(files),
            stations=flow(summary),
            panels=panels(summary.training, summary.labels),
            training_tables=tables(summary.training),
            predictions=[prediction_view(prediction) for prediction in summary.predictions],
            variant_panels=variant_panels(summary.models),
            by_dtype=by_dtype(summary.models),
            reference=reference_of(summary.models),
            dtypes=dtypes_of(summary.models),
            label=label_view(summary.label_example),
            slowest=max((stage.seconds or 0.0 for stage in summary.stages), default=0.0),
            doubts=doubts(run),
            questions=questions(summary),
            recipe_text=run.recipe_text,
            style=Markup(_resource("page.css")),  # noqa: S704 - our own file
            script=Markup(script),  # noqa: S704 - our own file
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_resource),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {name: getattr(figures, name) for name in figures.__all__ if name != "MISSING"}
    filters |= {
        "colour": colour_of,
        "cross_entropy": cross_entropy_of,
        "example": plain_example,
        "label": label_of,
        "shape": shape_of,
        "visible": visible,
    }
    environment.filters.update(filters)
    environment.globals.update(heat=_heat, stage_rows=_stage_rows, truth_shown=_truth_shown)
    return environment


def _heat(strip: Strip) -> Markup:
    """A heat strip: a shade a number, the numbers themselves in its label and on hover."""
    cells = Markup("").join(
        Markup('<i class="{}" style="--v:{}"></i>').format("n" if cell.negative else "p", cell.strength)
        for cell in strip.cells
    )
    return Markup('<span class="strip" role="img" aria-label="{0}" title="{0}">{1}</span>').format(strip.words, cells)


def _stage_rows(stage: Stage) -> list[tuple[str, Described]]:
    return [("in", item) for item in stage.inputs] + [("out", item) for item in stage.outputs]


def _truth_shown(view: PredictionView) -> bool:
    return any(row.is_true_next for row in view.rows)


def _resource(name: str) -> str:
    return resources.files(_PACKAGE).joinpath(name).read_text(encoding="utf-8")


def _when(run: Run) -> str:
    """When the run last wrote to its trace, to the minute; "" where it has none."""
    for event in reversed(run.events):
        try:
            moment = datetime.fromisoformat(str(event.get("time")))
        except ValueError:
            continue
        if moment.tzinfo is not None:
            return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return ""
