"""Asking a local teacher: one pass over the text, and its next-token distribution kept at every scored position.

A batch never reaches over the end of a shard, so a capture that was killed and goes on writes the same bytes as one
that wasn't. What they depend on: teacher, text, settings and, in the last bit of a float32 sum, on the kernels that
the machine picks for a batch of this shape; with another ``batch_sentences`` they are equal up to that rounding.

Shapes: B rows of a batch, T tokens, P scored positions, D width, V vocabulary.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from potstill.core import interrupt
from potstill.core.durable import write_json
from potstill.core.errors import InputError, RecipeError
from potstill.core.trace import Trace
from potstill.core.world import current
from potstill.data.facts import vocabulary_of
from potstill.data.sequences import PackedSequences
from potstill.labels.kinds import DenseLabels, SoftLabels, TopKLabels
from potstill.labels.settings import Dense, TopK
from potstill.labels.store import LabelStore, LabelWriter
from potstill.model.anatomy import hidden_states, logits_of
from potstill.model.store import load_model, load_tokenizer, model_fingerprint, tokenizer_fingerprint
from potstill.teacher.example import label_example
from potstill.teacher.fit import check_teacher
from potstill.teacher.settings import CaptureSettings

__all__ = ["capture_labels", "labels_of"]

_SPLITS = ("train", "validation")
_LOGITS_AT_ONCE = 1 << 25
_SECONDS_BETWEEN_PROGRESS = 0.25


@dataclass(frozen=True)
class _Teacher:
    """Who is asked, for how many tokens' probabilities, and how."""

    model: PreTrainedModel
    vocabulary: int
    settings: CaptureSettings


def labels_of(logits_PV: Tensor, kind: TopK | Dense) -> SoftLabels:
    """The soft labels of a teacher's logits, in float32.

    The tail's mass is summed over the tokens that are left out, never taken as 1 - (kept mass), so a tiny one keeps
    its digits, and is exactly 0 where nothing is left out.

    Raises: RecipeError: more tokens are to be kept than there are. InputError: a logit is NaN or +inf.
    Cost: two P x V float32 copies.
    """
    logits_PV = logits_PV.float()
    log_total_P1 = logits_PV.logsumexp(-1, keepdim=True)
    if not log_total_P1.isfinite().all():
        raise InputError("the teacher's logits are NaN or infinite", next_step="check its weights and precision")
    if isinstance(kind, Dense):
        return DenseLabels(logits_PV - log_total_P1)
    if kind.k > logits_PV.shape[-1]:
        raise RecipeError(
            f"{kind.k} tokens are to be kept of a vocabulary of {logits_PV.shape[-1]}",
            where="labels.k",
            next_step="keep fewer, or use labels: {kind: dense}",
        )
    kept_PK, ids_PK = logits_PV.topk(kind.k, dim=-1)
    log_outside_P1 = logits_PV.scatter(-1, ids_PK, -torch.inf).logsumexp(-1, keepdim=True)
    return TopKLabels(ids_PK, kept_PK - log_total_P1, (log_outside_P1 - log_total_P1).exp().squeeze(-1))


def capture_labels(settings: CaptureSettings, inputs: Mapping[str, Path], out: Path, trace: Trace) -> None:
    """The teacher's labels of the student's rows and of all validation rows.

    Reads: data, teacher. Writes: train/ and validation/ (label stores), labels.json (the facts of train/ and the path
    of each split), example.json (what one label looks like). Shards of an earlier try that are whole are kept; several
    processes each write a share of the missing ones.

    Raises: InputError: the teacher doesn't fit the data's tokenizer or its length of text.
    """
    data, directory = inputs["data"], inputs["teacher"] / "model"
    sequences = {split: PackedSequences.load(data, split) for split in _SPLITS}
    sequences["train"] = sequences["train"].first(settings.sentences)
    tokenizer = load_tokenizer(data / "tokenizer")
    vocabulary = vocabulary_of(data)
    model = load_model(directory).to(settings.device)  # type: ignore[arg-type] # transformers wraps torch's `to`
    check_teacher(model, directory, tokenizer, vocabulary, sequences["train"].tokens_per_sequence, trace=trace)
    teacher = _Teacher(model, vocabulary, settings)
    bound_to = {"teacher": model_fingerprint(directory), "tokenizer": tokenizer_fingerprint(data / "tokenizer")}
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
        )
        _write_missing(writer, teacher, rows, trace, what=f"labels of {split}")
        stores[split] = LabelStore.open(
            out / split,
            sequences=rows,
            teacher_fingerprint=bound_to["teacher"],
            tokenizer_fingerprint=bound_to["tokenizer"],
        )
    if not current().leads:
        return
    facts = stores["train"].facts
    write_json(out / "labels.json", {**facts, "splits": {split: store.facts for split, store in stores.items()}})
    trace.metric("label_bytes", facts["bytes"], "bytes")
    trace.metric("label_bytes_per_token", facts["bytes_per_token"], "bytes/token")
    example = label_example(stores["train"], sequences["train"], tokenizer)
    write_json(out / "example.json", example)
    trace.event("label_example", "label_example", example)
    kept = settings.labels.k if isinstance(settings.labels, TopK) else vocabulary
    shown = {entry["token"]: round(entry["probability"], 3) for entry in (example or {}).get("entries", [])[:5]}
    trace.output("soft labels", shape=[facts["tokens"], kept], dtype="float16", example=shown)


def _write_missing(
    writer: LabelWriter, teacher: _Teacher, sequences: PackedSequences, trace: Trace, *, what: str
) -> None:
    world = current()
    missing = writer.missing()
    total = sum(len(rows) for rows in missing) * sequences.tokens_per_sequence
    kept = len(sequences) - sum(len(rows) for rows in missing)
    if kept and missing:
        trace.note("resume", f"{what}: {kept:,} of {len(sequences):,} sequences were labelled before")
    world.gather(stoppable=True)  # all have looked before the first one writes
    mine = missing[world.rank :: world.size]
    start = shown = time.perf_counter()
    done = 0

    def labelled(rows: range) -> Iterator[SoftLabels]:
        nonlocal done, shown
        size = teacher.settings.batch_sentences
        for first in range(rows.start, rows.stop, size):
            interrupt.check()
            batch_B = np.arange(first, min(first + size, rows.stop))
            yield from _labels_of_rows(teacher, sequences, batch_B)
            done += len(batch_B) * sequences.tokens_per_sequence * world.size  # the others are about as far
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


def _labels_of_rows(teacher: _Teacher, sequences: PackedSequences, rows_B: NDArray[np.int64]) -> Iterator[SoftLabels]:
    """The labels of a batch, in parts small enough that their logits fit; only scored positions pass the head."""
    tokens, scored = sequences.rows(rows_B)
    model, device = teacher.model, teacher.model.device
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=teacher.settings.precision == "bfloat16")
    with torch.inference_mode(), autocast:
        tokens_BT = torch.from_numpy(tokens).to(device)
        hidden_PD = hidden_states(model, tokens_BT)[torch.from_numpy(scored).to(device)]
    size = max(_LOGITS_AT_ONCE // teacher.vocabulary, 1)
    for first in range(0, len(hidden_PD), size):
        with torch.inference_mode():
            with autocast:
                logits_PV = logits_of(model, hidden_PD[first : first + size])
            labels = labels_of(logits_PV[:, : teacher.vocabulary], teacher.settings.labels).to("cpu")
        yield labels


def _beginning(sequences: PackedSequences) -> list[int]:
    return [int(token) for token in sequences.tokens_NT[0, :12]] if len(sequences) else []
