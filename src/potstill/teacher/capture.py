"""Asking a local teacher: one pass over the text, and its next-token distribution kept at every scored position.

A batch never reaches over the end of a shard, so a capture that was killed and goes on writes the same bytes as one
that wasn't. What they depend on: teacher, text, settings and, in the last bit of a float32 sum, on the kernels that
the machine picks for a batch of this shape; with another ``batch_sentences`` they are equal up to that rounding.

Shapes: B rows of a batch.
"""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from potstill.core import interrupt
from potstill.core.durable import write_json
from potstill.core.trace import Trace
from potstill.core.world import current
from potstill.data.facts import vocabulary_of
from potstill.data.sequences import PackedSequences
from potstill.labels.kinds import Draws, SoftLabels
from potstill.labels.prior import PRIOR
from potstill.labels.settings import Sampled, TopK
from potstill.labels.store import LabelStore, LabelWriter
from potstill.model.store import load_model, load_tokenizer, model_fingerprint, tokenizer_fingerprint
from potstill.teacher.example import ROWS_LOOKED_AT, label_example
from potstill.teacher.fit import check_teacher
from potstill.teacher.local import Answers, LocalTeacher
from potstill.teacher.preflight import check_before_capture
from potstill.teacher.prior import prior_for
from potstill.teacher.settings import CaptureSettings

__all__ = ["capture_labels"]

_SPLITS = ("train", "validation")
_SECONDS_BETWEEN_PROGRESS = 0.25


def capture_labels(settings: CaptureSettings, inputs: Mapping[str, Path], out: Path, trace: Trace) -> None:
    """The teacher's labels of the student's rows and of all validation rows, once it was looked at on held-out text.

    Reads: data, teacher. Writes: preflight.json, train/ and validation/ (label stores), labels.json (the facts of
    train/ and of each split), example.json (what one label looks like). Shards of an earlier try that are whole are
    kept; several processes each write a share of the missing ones.

    Raises: InputError: the teacher doesn't fit the data's tokenizer or its length of text.
    """
    data, directory = inputs["data"], inputs["teacher"] / "model"
    sequences = {split: PackedSequences.load(data, split) for split in _SPLITS}
    sequences["train"] = sequences["train"].first(settings.sentences)
    tokenizer = load_tokenizer(data / "tokenizer")
    vocabulary = vocabulary_of(data)
    model = load_model(directory).to(settings.device)  # type: ignore[arg-type] # transformers wraps torch's `to`
    check_teacher(model, directory, tokenizer, vocabulary, sequences["train"].tokens_per_sequence, trace=trace)
    teacher = LocalTeacher(model, vocabulary, settings)
    bound_to = {"teacher": model_fingerprint(directory), "tokenizer": tokenizer_fingerprint(data / "tokenizer")}
    trained_here = (inputs["teacher"] / "history.json").is_file()
    check_before_capture(teacher, sequences["train"], sequences["validation"], out, trace, trained_here=trained_here)
    answers = {split: Answers(teacher, rows) for split, rows in sequences.items()}
    prior = prior_for(answers["train"], out / "train" / PRIOR, trace)
    stores = {}
    for split, rows in sequences.items():
        trace.input(
            f"{split} text", shape=rows.tokens_NT.shape, dtype=str(rows.tokens_NT.dtype), example=_beginning(rows)
        )
        writer = LabelWriter(
            out / split,
            settings.labels,
            vocabulary=vocabulary,
            sequences=rows,
            teacher_fingerprint=bound_to["teacher"],
            tokenizer_fingerprint=bound_to["tokenizer"],
            prior=prior,
        )
        _write_missing(writer, answers[split], trace, what=f"labels of {split}")
        stores[split] = LabelStore.open(
            out / split,
            sequences=rows,
            teacher_fingerprint=bound_to["teacher"],
            tokenizer_fingerprint=bound_to["tokenizer"],
            first_rows=ROWS_LOOKED_AT,  # who trains on the store decodes all of it
        )
    if current().leads:
        _tell(stores, sequences, tokenizer, out, trace)


def _tell(
    stores: Mapping[str, LabelStore],
    sequences: Mapping[str, PackedSequences],
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    trace: Trace,
) -> None:
    """Write what the labels are and cost, and what one looks like."""
    facts = stores["train"].facts
    write_json(out / "labels.json", {**facts, "splits": {split: store.facts for split, store in stores.items()}})
    trace.metric("label_bytes", facts["bytes"], "bytes")
    trace.metric("label_bytes_per_token", facts["bytes_per_token"], "bytes/token")
    example = label_example(stores["train"], sequences["train"], tokenizer)
    write_json(out / "example.json", example)
    trace.event("label_example", "label_example", example)
    kind = stores["train"].kind
    kept = kind.k if isinstance(kind, TopK) else kind.draws if isinstance(kind, Sampled) else stores["train"].vocabulary
    shown = {entry["token"]: round(entry["probability"], 3) for entry in (example or {}).get("entries", [])[:5]}
    dtype = "draws" if isinstance(kind, Sampled) else "float16"
    trace.output("soft labels", shape=[facts["tokens"], kept], dtype=dtype, example=shown)


def _write_missing(writer: LabelWriter, answers: Answers, trace: Trace, *, what: str) -> None:
    world, sequences = current(), answers.sequences
    missing = writer.missing()
    total = sum(len(rows) for rows in missing) * sequences.tokens_per_sequence
    kept = len(sequences) - sum(len(rows) for rows in missing)
    if kept and missing:
        trace.note("resume", f"{what}: {kept:,} of {len(sequences):,} sequences were labelled before")
    world.gather(stoppable=True)  # all have looked before the first one writes
    mine = missing[world.rank :: world.size]
    start = shown = time.perf_counter()
    done = 0

    def labelled(rows: range) -> Iterator[SoftLabels | Draws]:
        nonlocal done, shown
        for batch in answers.batches(rows):
            interrupt.check()
            yield from answers.of(batch)
            done += len(batch) * sequences.tokens_per_sequence * world.size  # the others are about as far
            if time.perf_counter() - shown > _SECONDS_BETWEEN_PROGRESS:
                shown = time.perf_counter()
                trace.progress(what, min(done, total), total, "tokens")

    for rows in mine:
        writer.write(rows, labelled(rows))
    world.gather(stoppable=True)
    if world.leads:
        writer.finish()
    world.gather()
    if missing:
        trace.metric("tokens_per_s", total / max(time.perf_counter() - start, 1e-9), "tokens/s", what=what)


def _beginning(sequences: PackedSequences) -> list[int]:
    return [int(token) for token in sequences.tokens_NT[0, :12]] if len(sequences) else []
