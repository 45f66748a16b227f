"""What the report knows of a run: summary.json, trace.jsonl and recipe.yaml, parsed once.

A part that is missing is empty, and the page says so. A part that is there but wrong stops the report with its key:
a page must not draw what nobody measured. Numbers that aren't finite are shown as missing and noted.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo

from potstill.core.durable import read_json
from potstill.core.errors import InputError
from potstill.core.trace import Event, read_trace
from potstill.report.text import harmless, harmless_json

__all__ = [
    "Block",
    "Candidate",
    "Described",
    "Epoch",
    "LabelExample",
    "Labels",
    "Model",
    "Prediction",
    "Run",
    "Stage",
    "Summary",
    "Token",
    "Training",
    "Twin",
    "read_run",
]

_NON_FINITE = {"nan", "inf", "-inf", "infinity", "-infinity"}
_MAX_PROBLEMS = 5

T = TypeVar("T")


def _number(value: Any, info: ValidationInfo) -> float | None:  # noqa: ANN401 - any JSON value
    if value is None:
        return None
    if isinstance(value, str) and value.strip().lower() in _NON_FINITE:
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"is {value!r}, which is no number"
        raise ValueError(msg)  # noqa: TRY004 - pydantic collects ValueErrors
    if not math.isfinite(value):
        if isinstance(info.context, list):
            info.context.append(f"{info.field_name} is {value} in summary.json; it is shown as missing")
        return None
    return float(value)


def _empty_if_null(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    return [] if value is None else value


Number = Annotated[float | None, BeforeValidator(_number)]
Rows = Annotated[list[T], BeforeValidator(_empty_if_null)]
Strings = Annotated[list[str], BeforeValidator(_empty_if_null)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class Described(_Part):
    what: str
    shape: list[int] = []
    dtype: str = ""
    example: Any = None


class Stage(_Part):
    name: str
    kind: str = ""
    seconds: Number = None
    peak_memory_bytes: Number = None
    cached: bool = False
    inputs: Rows[Described] = []
    outputs: Rows[Described] = []


class Epoch(_Part):
    epoch: float
    train_loss_nats: Number = None
    validation_loss_nats: Number = None
    validation_kl_nats: Number = None
    validation_cross_entropy_nats: Number = None
    validation_accuracy: Number = None
    validation_agreement: Number = None
    validation_perplexity: Number = None
    tokens_per_s: Number = None
    loss: str | None = None
    observation: str | None = None


class Training(_Part):
    teacher: Rows[Epoch] = []
    student: Rows[Epoch] = []
    twin: Rows[Epoch] = []
    pruned: Rows[Epoch] = []


class Model(_Part):
    name: str
    format: str = ""
    engine: str = ""
    dtype: str = ""
    parameters: Number = None
    bytes: Number = None
    perplexity: Number = None
    perplexity_interval_95: list[Number] | None = None
    accuracy: Number = None
    agreement_with_teacher: Number = None
    kl_to_teacher_nats: Number = None
    agreement_with_student: Number = None
    kl_to_student_nats: Number = None
    difference_to_base_nats: Number = None
    difference_to_base_interval_95: list[Number] | None = None
    prefill_tokens_per_s: Number = None
    decode_tokens_per_s: Number = None
    peak_memory_bytes: Number = None
    prompt_tokens: Number = None
    test_positions: Number = None
    fallbacks: Number = None


class Labels(_Part):
    kind: str = ""
    tokens: Number = None
    bytes: Number = None
    bytes_per_token: Number = None


class Comparison(_Part):
    difference_nats: Number = None
    interval_95: list[Number] | None = None
    verdict: str = ""


class Twin(Comparison):
    """At equal steps, and in ``equal_time`` at equal wall-clock."""

    equal_time: Comparison | None = None


class LabelEntry(_Part):
    token: str
    id: int | None = None
    probability: Number = None


class LabelExample(_Part):
    context: str = ""
    true_next: str | None = None
    entries: Rows[LabelEntry] = []
    tail_mass: Number = None
    entropy_nats: Number = None
    draws: int | None = None


class Token(_Part):
    id: int
    text: str
    embedding: Rows[Number] = []


class Candidate(_Part):
    token: str
    id: int | None = None
    probability: Number = None
    logit: Number = None


class Block(_Part):
    block: int
    rms: Number = None
    values: Rows[Number] = []
    top: Rows[Candidate] = []


class Prediction(_Part):
    prompt: str
    tokens: Rows[Token] = []
    true_next: str | None = None
    blocks: Rows[Block] = []
    candidates: dict[str, list[Candidate]] = {}
    continuations: dict[str, str] = {}


class Hardware(_Part):
    """Where speed and memory were measured."""

    processor: str
    cores_usable: int
    memory_bytes: int | None
    threads: int


class Summary(_Part):
    recipe: str
    seconds: Number = None
    peak_memory_bytes: Number = None
    stages: Rows[Stage] = []
    training: Training = Field(default_factory=Training)
    models: Rows[Model] = []
    labels: Labels | None = None
    twin: Twin | None = None
    warnings: Strings = []
    fallbacks: Strings = []
    data: dict[str, Any] | None = None
    predictions: Rows[Prediction] = []
    label_example: LabelExample | None = None
    versions: dict[str, str] = {}
    hardware: Hardware | None = None


@dataclass(frozen=True)
class Run:
    """One run as the page sees it; ``notes`` says what was missing or not finite while reading."""

    summary: Summary
    events: tuple[Event, ...]
    recipe_text: str | None
    notes: tuple[str, ...]


def read_run(run_dir: Path) -> Run:
    """Read a run directory's three files; only summary.json must be there.

    Raises: InputError: summary.json is missing or holds a value of another type than its key promises, or the trace
    or the recipe is there and can't be read.
    """
    notes: list[str] = []
    summary = _parse(harmless_json(read_json(run_dir / "summary.json")), run_dir / "summary.json", notes)
    trace_path, recipe_path = run_dir / "trace.jsonl", run_dir / "recipe.yaml"
    events: tuple[Event, ...] = ()
    if trace_path.exists():
        events = tuple(harmless_json(read_trace(trace_path)))
    else:
        notes.append("trace.jsonl is missing from the run directory; nothing on this page comes from it")
    recipe_text = None
    if recipe_path.exists():
        recipe_text = harmless(recipe_path.read_bytes().decode("utf-8", errors="replace"))
    else:
        notes.append("recipe.yaml is missing from the run directory; the recipe can't be shown")
    return Run(summary, events, recipe_text, tuple(dict.fromkeys(notes)))


def _parse(content: Any, path: Path, notes: list[str]) -> Summary:  # noqa: ANN401 - any JSON value
    try:
        return Summary.model_validate(content, context=notes)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in problems[:_MAX_PROBLEMS]]
        more = len(problems) - len(lines)
        lines += [f"and {more} more"] if more else []
        raise InputError(
            f"doesn't say what a summary says: {'; '.join(lines)}",
            where=str(path),
            next_step="run the recipe again: finished stages are kept and the summary is written anew",
        ) from error
