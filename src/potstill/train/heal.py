"""The prune stage: remove what the text needs least, then let the training loop heal what is left."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from potstill.core.durable import read_json, write_json
from potstill.core.trace import Trace
from potstill.core.world import current
from potstill.data.sequences import PackedSequences, epoch_order
from potstill.distill.objective import Objective
from potstill.distill.settings import Loss
from potstill.model.store import load_model, save_model
from potstill.prune.settings import StructuredPruning
from potstill.prune.structured import TOLERANCE, prune_structured
from potstill.train.loop import Training, fit
from potstill.train.precision import resolve_device, resolve_precision
from potstill.train.settings import Machine, TrainingSettings, default_learning_rate
from potstill.train.student import hidden_matching, labelled_text

__all__ = ["prune_and_heal"]

_HEALING_RATE_SHARE = 0.5
_ROWS_PER_BATCH = 32


def prune_and_heal(
    settings: StructuredPruning,
    losses: Sequence[Loss],
    machine: Machine,
    num_sentences: int,
    inputs: Mapping[str, Path],
    out: Path,
    trace: Trace,
) -> None:
    """Cut the student down to its share of parameters, and train what is left on the soft labels.

    The healing starts from weights that are nearly right, so its default rate is half of a fresh model's.

    Reads: data, teacher, labels, student. Writes: model/, cut/ (the model before healing), history.json, prune.json.
    """
    text = labelled_text(inputs, num_sentences)
    device = resolve_device(machine.device)
    wound = out / "cut"
    world = current()
    if world.leads and not (wound / "config.json").exists():
        _cut(settings, machine, text.train.sequences, inputs, out, trace)
    world.gather(stoppable=True)
    model = load_model(wound).to(device)  # type: ignore[arg-type] # transformers wraps torch's `to`
    report = read_json(out / "prune.json")
    trace.input("student", shape=[report["parameters_before"]], dtype="float32", example="all blocks and channels")
    if settings.epochs:
        healing = TrainingSettings(
            epochs=settings.epochs,
            batch_sentences=settings.batch_sentences,
            learning_rate=settings.learning_rate or _HEALING_RATE_SHARE * default_learning_rate(model.num_parameters()),
        )
        training = Training(
            who="pruned",
            model=model,
            text=text.train,
            validation=text.validation,
            objective=Objective(losses),
            settings=healing,
            seed=machine.seed,
            precision=resolve_precision(machine.precision, device),
            parallel=machine.parallel,
            matching=hidden_matching(losses, model, inputs, seed=machine.seed),
        )
        fit(training, out, trace)
    elif world.leads:
        write_json(out / "history.json", [])
    if world.leads:
        save_model(model.cpu(), inputs["data"] / "tokenizer", out / "model")
    removed = f"without blocks {report['blocks_removed']}, MLP {report['mlp_width_after']} wide"
    trace.output("pruned", shape=[report["parameters_after"]], dtype="float32", example=removed)


def _cut(
    settings: StructuredPruning,
    machine: Machine,
    sequences: PackedSequences,
    inputs: Mapping[str, Path],
    out: Path,
    trace: Trace,
) -> None:
    """Write prune.json, and cut/ after it: its config.json, written last, says that both are whole."""
    student = load_model(inputs["student"] / "model")
    batches = _calibration(sequences, settings.calibration_sentences, seed=machine.seed)
    with trace.span("choosing what to remove"):
        pruned, report = prune_structured(student, batches, settings.keep_parameters)
    if abs(report.parameters_after / report.parameters_target - 1) > TOLERANCE:
        trace.warning(
            f"pruning left {report.parameters_after:,} parameters where {report.parameters_target:,} were asked for: "
            "the model's blocks and channels come in no finer steps"
        )
    trace.metric("kl_to_parent_nats", report.kl_to_parent_nats, "nats")
    trace.metric("parameters", report.parameters_after, "1", model="pruned")
    write_json(out / "prune.json", asdict(report))
    save_model(pruned, inputs["data"] / "tokenizer", out / "cut")


def _calibration(sequences: PackedSequences, num_sentences: int, *, seed: int) -> list[tuple[Tensor, Tensor]]:
    rows_N = epoch_order(seed, 0, len(sequences))[:num_sentences]
    batches = []
    for rows_B in np.array_split(rows_N, max(1, len(rows_N) // _ROWS_PER_BATCH)):
        tokens, scored = sequences.rows(rows_B)
        batches.append((torch.from_numpy(tokens), torch.from_numpy(scored)))
    return batches
