"""The teacher stage: train one here, or take one that exists."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from potstill.core.errors import InputError
from potstill.core.trace import Trace
from potstill.data.facts import token_facts, vocabulary_of
from potstill.data.sequences import PackedSequences
from potstill.distill.objective import Objective
from potstill.distill.settings import CrossEntropy
from potstill.model.build import build_llama
from potstill.model.shapes import shape_for_budget
from potstill.model.store import load_model, save_model
from potstill.train.loop import Training, TrainingText, fit
from potstill.train.precision import resolve_device, resolve_precision
from potstill.train.settings import LoadedTeacher, Machine, TrainedTeacher

__all__ = ["load_teacher", "train_teacher"]


def train_teacher(
    settings: TrainedTeacher, machine: Machine, inputs: Mapping[str, Path], out: Path, trace: Trace
) -> None:
    """Build a Llama of the budget and train it on every training row that the data stage packed.

    Reads: data. Writes: model/, history.json.
    """
    data = inputs["data"]
    train, validation = PackedSequences.load(data, "train"), PackedSequences.load(data, "validation")
    device = resolve_device(machine.device)
    precision = resolve_precision(machine.precision, device)
    tokens = token_facts(data)
    shape = shape_for_budget(settings.parameters, tokens.vocabulary)
    model = build_llama(shape, seed=machine.seed, beginning_id=tokens.beginning_id, end_id=tokens.end_id).to(device)  # type: ignore[arg-type] # transformers wraps torch's `to`
    trace.input(
        "text", shape=train.tokens_NT.shape, dtype=str(train.tokens_NT.dtype), example=train.tokens_NT[0, :12].tolist()
    )
    trace.metric("parameters", model.num_parameters(), "1", model="teacher")
    trace.note("precision", f"matrix products in {precision} on {device}")
    training = Training(
        who="teacher",
        model=model,
        text=TrainingText(train),
        validation=TrainingText(validation),
        objective=Objective([CrossEntropy()]),
        settings=settings,
        seed=machine.seed,
        precision=precision,
    )
    fit(training, out, trace)
    save_model(model.cpu(), data / "tokenizer", out / "model")
    trace.output("teacher", shape=[model.num_parameters()], dtype="float32", example=_shape_in_words(model.config))


def load_teacher(settings: LoadedTeacher, inputs: Mapping[str, Path], out: Path, trace: Trace) -> None:
    """Check that a model loads safely, and make its files this stage's own (by hard links where that works).

    Writes: model/.
    """
    model = load_model(settings.model)
    source = Path(settings.model)
    if source.is_dir():
        _link_or_copy(source, out / "model")
    else:
        save_model(model, None, out / "model")
    trace.metric("parameters", model.num_parameters(), "1", model="teacher")
    trace.input("model", shape=[model.num_parameters()], dtype=str(model.dtype), example=settings.model)
    trace.output(
        "teacher", shape=[model.num_parameters()], dtype=str(model.dtype), example=_shape_in_words(model.config)
    )
    if "data" in inputs and vocabulary_of(inputs["data"]) > model.config.vocab_size:
        raise InputError(
            f"knows {model.config.vocab_size:,} tokens, the text uses {vocabulary_of(inputs['data']):,}",
            where=settings.model,
            next_step="use data.tokenizer: {kind: teacher}",
        )


def _link_or_copy(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        if file.suffix in {".json", ".safetensors", ".model", ".txt", ".jinja", ".md"} and file.is_file():
            there = target / file.name
            there.unlink(missing_ok=True)
            try:
                os.link(file.resolve(), there)
            except OSError:
                shutil.copyfile(file, there)


def _shape_in_words(config: object) -> str:
    names = {"num_hidden_layers": "blocks", "hidden_size": "wide", "vocab_size": "tokens known"}
    facts = [f"{getattr(config, name):,} {word}" for name, word in names.items() if hasattr(config, name)]
    return ", ".join(facts)
