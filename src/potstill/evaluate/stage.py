"""The evaluation stage: every model and every file of a run, through one interface, into one table."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from potstill.core.durable import read_json, write_json
from potstill.core.errors import ResourceError
from potstill.core.formats import FORMATS
from potstill.core.hardware import cores_usable, hardware
from potstill.core.trace import Trace
from potstill.data.sequences import PackedSequences
from potstill.data.tokenizer import TextCoder, load_tokenizer
from potstill.evaluate import rows
from potstill.evaluate.bootstrap import twin_verdict
from potstill.evaluate.entries import Entry, find_entries
from potstill.evaluate.likelihood import Scores, score
from potstill.evaluate.memory import measure_peak_memory
from potstill.evaluate.prediction import draw_prompts, predict, read_prompts
from potstill.evaluate.settings import EvaluateSettings
from potstill.evaluate.speed import Speed, Work, measure_speed
from potstill.model.store import load_model
from potstill.runtime.engine import Engine
from potstill.runtime.table import open_engine

__all__ = ["evaluate_models"]

_FEW_SEQUENCES = 30
_ASKED = {
    "teacher": ("teacher",),
    "student": ("student",),
    "student-int8": (*(f"student-int8 ({format_})" for format_ in FORMATS), "student-int8"),
}
"""Who answers side by side in the prediction trace, and the keys of the entries that may speak for it."""


def evaluate_models(settings: EvaluateSettings, inputs: Mapping[str, Path], out: Path, trace: Trace) -> None:
    """Score, time and question every model and file of a run.

    Without a teacher's model (its answers were all there was) the student is the reference.

    Writes: models.json, a row for each model and file; predictions.json; hardware.json, what it was measured on;
    twin.json, null without a twin.
    """
    sequences = PackedSequences.load(inputs["data"], "test").first(settings.test_sentences)
    coder = TextCoder.of(load_tokenizer(inputs["data"] / "tokenizer"), where=str(inputs["data"]))
    _tell_input(sequences, coder, trace)
    threads = settings.threads or cores_usable()
    speeds: dict[str, Speed] = {}
    peaks: dict[str, int] = {}
    with ExitStack() as stack:
        entries, engines = _open(find_entries(inputs), threads, stack, trace)
        work = _work(settings, entries, trace)
        reference = "teacher" if "teacher" in engines else "student"
        if reference == "student":
            trace.note("reference", "there is no teacher's model: agreement and KL are to the float32 student")
        with trace.span("scoring"):
            scores = score(engines, reference, sequences, trace)
        predictions = _predictions(settings, inputs, engines, (sequences, coder), trace)
        if settings.speed:
            with trace.span("measuring speed"):
                speeds = measure_speed(engines, work, trace, seed=settings.seed)
        facts = {key: engine.facts for key, engine in engines.items()}
    if settings.speed:
        with trace.span("measuring memory"):
            peaks = measure_peak_memory({entry.key: entry.path for entry in entries}, work, threads=threads)
    table = [
        rows.finite(
            rows.identity(entry, facts[entry.key])
            | rows.quality(entry, scores, reference, settings)
            | rows.cost(speeds.get(entry.key), peaks.get(entry.key), work),
            trace,
        )
        for entry in entries
    ]
    write_json(out / "models.json", table)
    write_json(out / "hardware.json", {**hardware(), "threads": threads})
    write_json(out / "predictions.json", predictions)
    write_json(out / "twin.json", _twin(scores, settings, inputs["student"], trace))
    _tell_output(table, speeds, predictions, trace)


def _open(
    entries: Sequence[Entry], threads: int, stack: ExitStack, trace: Trace
) -> tuple[list[Entry], dict[str, Engine]]:
    """Open every entry; a file whose runtime this machine hasn't got is left out, with a warning."""
    engines: dict[str, Engine] = {}
    for entry in entries:
        try:
            engines[entry.key] = stack.enter_context(open_engine(entry.path, threads=threads))
        except ResourceError as error:
            if entry.format is None:
                raise
            trace.warning(f"{entry.path.name} has no row in the table of models: {error.where}: {error.what}")
    return [entry for entry in entries if entry.key in engines], engines


def _work(settings: EvaluateSettings, entries: Sequence[Entry], trace: Trace) -> Work:
    """What speed and memory are measured with: as asked for, or what the shortest context has room for."""
    configs = [read_json(entry.path / "config.json") for entry in entries if entry.path.is_dir()]
    context = min(int(config.get("max_position_embeddings") or 1 << 30) for config in configs)
    if settings.prompt_tokens + settings.new_tokens <= context:
        return Work(settings.prompt_tokens, settings.new_tokens, settings.rounds)
    new_tokens = min(settings.new_tokens, max(1, context // 4))
    prompt_tokens = max(1, context - new_tokens)
    if settings.speed:
        trace.fallback(
            f"speed is measured with a prompt of {prompt_tokens} tokens and {new_tokens} new ones, for the models' "
            f"context ends at {context}"
        )
    return Work(prompt_tokens, new_tokens, settings.rounds)


def _predictions(
    settings: EvaluateSettings,
    inputs: Mapping[str, Path],
    engines: Mapping[str, Engine],
    text: tuple[PackedSequences, TextCoder],
    trace: Trace,
) -> list[dict[str, Any]]:
    sequences, coder = text
    if settings.prompts:
        prompts = read_prompts(settings.prompts, coder, trace)
    else:
        prompts = draw_prompts(sequences, coder.tokenizer, settings.num_prompts, seed=settings.seed)
    asked = {name: next((engines[key] for key in keys if key in engines), None) for name, keys in _ASKED.items()}
    present = {name: engine for name, engine in asked.items() if engine is not None}
    student = load_model(inputs["student"] / "model")
    return [
        predict(prompt, student, present, coder.tokenizer, continuation_tokens=settings.continuation_tokens)
        for prompt in prompts
    ]


def _twin(
    scores: Mapping[str, Scores], settings: EvaluateSettings, student: Path, trace: Trace
) -> dict[str, Any] | None:
    """The verdict at equal steps, and under ``equal_time`` the one at equal wall-clock, null where nobody wanted it."""
    if "twin" not in scores:
        return None
    judge = partial(twin_verdict, scores["student"], seed=settings.seed, num_resamples=settings.resamples)
    verdict = judge(scores["twin"])
    trace.note("twin", verdict["verdict"])
    time_facts = read_json(student / "equal_time.json") if (student / "equal_time.json").is_file() else None
    if time_facts is None:
        return {**verdict, "equal_time": None}
    which = f"the plain twin that trained as long, {time_facts['epochs']} epochs"
    equal_time = judge(scores.get("twin-long", scores["twin"]), which=which)
    trace.note("twin", equal_time["verdict"])
    return {**verdict, "equal_time": {**equal_time, **time_facts}}


def _tell_input(sequences: PackedSequences, coder: TextCoder, trace: Trace) -> None:
    tokens = [int(token) for token in sequences.tokens_NT[0, 1 : sequences.lengths_N[0]]] if len(sequences) else []
    trace.input(
        "test text",
        shape=sequences.tokens_NT.shape,
        dtype=str(sequences.tokens_NT.dtype),
        example=str(coder.tokenizer.decode(tokens, skip_special_tokens=True)),
    )
    trace.metric("test_positions", sequences.num_scored, "positions")
    if 0 < len(sequences) < _FEW_SEQUENCES:
        trace.warning(
            f"only {len(sequences)} sequences of test text: the 95 % intervals are narrower than they should be"
        )


def _tell_output(
    table: Sequence[Mapping[str, Any]],
    speeds: Mapping[str, Speed],
    predictions: Sequence[Mapping[str, Any]],
    trace: Trace,
) -> None:
    for key, speed in speeds.items():
        for name, rate in vars(speed).items():
            trace.metric(name, rate.median, "tokens/s", model=key, slowest=rate.slowest, fastest=rate.fastest)
    trace.table("models", table)
    example = {key: table[0][key] for key in ("name", "format", "bytes", "perplexity")}
    trace.output("table of models", shape=[len(table), len(table[0])], dtype="rows", example=example)
    if predictions:
        one = predictions[0]
        best = {name: found[0]["token"] for name, found in one["candidates"].items()}
        shown = {"prompt": one["prompt"], "likeliest next token": best}
        trace.output("predictions", shape=[len(predictions)], dtype="prompts", example=shown)
