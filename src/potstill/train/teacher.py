"""The teacher stage: train one here, or take one that exists."""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import LlamaForCausalLM

from potstill.core.durable import write_json
from potstill.core.errors import InputError
from potstill.core.trace import Trace
from potstill.core.world import current
from potstill.data.facts import token_facts, vocabulary_of
from potstill.data.sequences import PackedSequences
from potstill.distill.objective import Objective
from potstill.distill.settings import CrossEntropy
from potstill.model.build import build_llama
from potstill.model.grow import grow_depth
from potstill.model.shapes import shape_for_budget
from potstill.model.store import load_model, save_model
from potstill.train.loop import Training, TrainingText, fit
from potstill.train.precision import resolve_device, resolve_precision
from potstill.train.settings import LoadedTeacher, Machine, TrainedTeacher, check_growth

__all__ = ["SHALLOW", "load_teacher", "train_teacher"]

SHALLOW = "shallow"
"""Where a teacher that grows keeps its checkpoints before it does."""


def train_teacher(
    settings: TrainedTeacher, machine: Machine, inputs: Mapping[str, Path], out: Path, trace: Trace
) -> None:
    """Build a Llama of the budget and train it on every training row that the data stage packed.

    Reads: data. Writes: model/, history.json, in which a shallower model's epochs come first.
    """
    data = inputs["data"]
    train = PackedSequences.load(data, "train")
    device = resolve_device(machine.device)
    learn = partial(
        Training,
        text=TrainingText(train),
        validation=TrainingText(PackedSequences.load(data, "validation")),
        objective=Objective([CrossEntropy()]),
        seed=machine.seed,
        precision=resolve_precision(machine.precision, device),
        parallel=machine.parallel,
    )
    trace.input(
        "text", shape=train.tokens_NT.shape, dtype=str(train.tokens_NT.dtype), example=train.tokens_NT[0, :12].tolist()
    )
    trace.note("precision", f"matrix products in {learn.keywords['precision']} on {device}")
    model, earlier = _initial_teacher(settings, machine, data, learn, out, trace)
    trace.metric("parameters", model.num_parameters(), "1", model="teacher")
    model = model.to(device)  # type: ignore[arg-type] # transformers wraps torch's `to`
    history = fit(learn(who="teacher", model=model, settings=settings), out, trace)
    later = [{**entry, "epoch": entry["epoch"] + len(earlier)} for entry in history]
    if current().leads:
        write_json(out / "history.json", [*earlier, *later])
        save_model(model.cpu(), data / "tokenizer", out / "model")
    trace.output("teacher", shape=[model.num_parameters()], dtype="float32", example=_shape_in_words(model.config))


def _initial_teacher(
    settings: TrainedTeacher, machine: Machine, data: Path, learn: Callable[..., Training], out: Path, trace: Trace
) -> tuple[LlamaForCausalLM, list[dict[str, Any]]]:
    """The model before its own training and the epochs behind it: fresh, or grown from a shallower trained one."""
    tokens = token_facts(data)
    shape = shape_for_budget(settings.parameters, tokens.vocabulary)
    build = partial(build_llama, seed=machine.seed, beginning_id=tokens.beginning_id, end_id=tokens.end_id)
    grow = settings.grow_from
    if grow is None:
        return build(shape), []
    check_growth(grow, shape.blocks)
    shallow = build(replace(shape, blocks=grow.blocks)).to(resolve_device(machine.device))  # type: ignore[arg-type] # transformers wraps torch's `to`
    changed = settings.model_copy(update={"epochs": grow.epochs, "learning_rate": grow.learning_rate})
    who = f"teacher of {grow.blocks} blocks"
    history = fit(learn(who=who, model=shallow, settings=changed), out / SHALLOW, trace)
    trace.note("grow", f"the teacher grows from {grow.blocks} to {shape.blocks} blocks and says the same")
    return grow_depth(shallow.cpu(), shape.blocks), [{**entry, "blocks": grow.blocks} for entry in history]


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
