"""The table of stages: what a recipe makes, in which order, from what.

Each row says what the stage's result depends on (settings, inputs, code version: together its fingerprint) and which
function makes it. The functions import what they need when they run, so that a run whose stages are all done imports
no torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.core.artefact import fingerprint_of
from potstill.core.trace import Trace
from potstill.data.settings import TeacherTokenizer
from potstill.quantize.settings import label_of, text_tokens_of
from potstill.recipe import Recipe
from potstill.train.settings import LoadedTeacher, TrainedTeacher

__all__ = ["Stage", "stage_fingerprint", "stages_of"]

StageFunction = Callable[[Mapping[str, Path], Path, Trace], None]


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    ``inputs`` maps a role to the name of the stage that makes it; ``settings`` is everything of the recipe that the
    result depends on; ``scratch`` names files that help a killed stage to go on and are no part of its result.
    ``together``: all processes of a run under torchrun make it; the leading one makes the others by itself.
    """

    name: str
    kind: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    run: StageFunction
    code_version: int = 1
    scratch: tuple[str, ...] = ()
    together: bool = False


_CHECKPOINTS = ("checkpoint.json", "state-*.safetensors", "best*.safetensors", "best.json")


def stages_of(recipe: Recipe) -> list[Stage]:
    """The stages of a recipe in an order in which every input is made before it is read."""
    makers = (_data, _teacher, _labels, _student, _prune, _quantize, _export, _evaluate)
    stages = [stage for maker in makers if (stage := maker(recipe)) is not None]
    if isinstance(recipe.data.tokenizer, TeacherTokenizer):
        stages.sort(key=lambda stage: stage.name != "02-teacher")
    return stages


def stage_fingerprint(stage: Stage, recipe: Recipe, inputs: Mapping[str, str]) -> str:
    """What the stage's artefact is made from, as one hash; ``inputs`` maps a role to a fingerprint.

    Raises: PotstillError: a file of the text or of the loaded teacher isn't there.
    """
    settings = {**stage.settings, **_facts_outside(stage, recipe)}
    return fingerprint_of(stage.kind, settings, inputs, stage.code_version)


def _facts_outside(stage: Stage, recipe: Recipe) -> dict[str, Any]:
    """What the stage depends on besides the recipe: the files of the text, the teacher's weights."""
    if stage.name == "01-data":
        from potstill.data.sources import source_fingerprint

        return {"source_facts": source_fingerprint(recipe.data)}
    if isinstance(recipe.teacher, LoadedTeacher) and stage.name == "02-teacher":
        from potstill.model.directory import locate
        from potstill.model.store import model_fingerprint

        return {"model": model_fingerprint(locate(recipe.teacher.model))}
    return {}


def _data(recipe: Recipe) -> Stage:
    own_tokenizer = isinstance(recipe.data.tokenizer, TeacherTokenizer)

    def run(inputs: Mapping[str, Path], out: Path, trace: Trace) -> None:
        from potstill.data.stage import prepare_data

        models = {"teacher_model": inputs["teacher"] / "model"} if own_tokenizer else {}
        prepare_data(recipe.data_stage, models, out, trace)

    inputs = {"teacher": "02-teacher"} if own_tokenizer else {}
    return Stage("01-data", recipe.data.source.kind, _json(recipe.data_stage), inputs, run)


def _teacher(recipe: Recipe) -> Stage | None:
    teacher = recipe.teacher
    if teacher is None:
        return None

    def load(inputs: Mapping[str, Path], out: Path, trace: Trace) -> None:
        from potstill.train.teacher import load_teacher

        if isinstance(teacher, LoadedTeacher):
            load_teacher(teacher, inputs, out, trace)

    def train(inputs: Mapping[str, Path], out: Path, trace: Trace) -> None:
        from potstill.train.teacher import train_teacher

        if isinstance(teacher, TrainedTeacher):
            train_teacher(teacher, recipe.machine, inputs, out, trace)

    if isinstance(teacher, LoadedTeacher):
        return Stage("02-teacher", "load", _json(teacher), {}, load)
    settings = {
        "teacher": teacher.model_dump(mode="json", exclude={"sentences"}),  # the data stage's artefact has them
        "machine": _machine(recipe),
    }
    return Stage(
        "02-teacher",
        "train",
        settings,
        {"data": "01-data"},
        train,
        code_version=2,
        scratch=(*_CHECKPOINTS, "shallow/*"),
        together=True,
    )


def _labels(recipe: Recipe) -> Stage | None:
    labels = recipe.labels
    if labels is None:
        return None

    def run(inputs: Mapping[str, Path], out: Path, trace: Trace) -> None:
        from potstill.teacher.capture import capture_labels
        from potstill.teacher.settings import CaptureSettings
        from potstill.train.precision import resolve_device, resolve_precision

        device = resolve_device(recipe.device)
        precision = resolve_precision(recipe.precision, device)
        capture = CaptureSettings(
            labels=labels, sentences=recipe.data.sentences, precision=precision, device=device, seed=recipe.seed
        )
        capture_labels(capture, inputs, out, trace)

    settings = {"labels": _json(labels), "machine": _machine(recipe), "sentences": recipe.data.sentences}
    inputs = {"data": "01-data", "teacher": "02-teacher"}
    return Stage("03-labels", labels.kind, settings, inputs, run, code_version=4, together=True)


def _student(recipe: Recipe) -> Stage:
    def run(inputs: Mapping[str, Path], out: Path, trace: Trace) -> None:
        from potstill.train.student import train_student

        train_student(recipe.student, recipe.machine, recipe.data.sentences, inputs, out, trace)

    settings = {
        "student": _json(recipe.student),
        "machine": _machine(recipe),
        "sentences": recipe.data.sentences,
    }
    scratch = tuple(f"{who}{name}" for who in ("", "twin/", "twin-long/") for name in _CHECKPOINTS)
    kind = "distil" if recipe.labels else "train"
    return Stage(
        "04-student", kind, settings, _text_inputs(recipe), run, scratch=scratch, code_version=2, together=True
    )


def _prune(recipe: Recipe) -> Stage | None:
    prune = recipe.prune
    if prune is None:
        return None

    def run(inputs: Mapping[str, Path], out: Path, trace: Trace) -> None:
        from potstill.train.heal import prune_and_heal

        prune_and_heal(prune, recipe.student.losses, recipe.machine, recipe.data.sentences, inputs, out, trace)

    settings = {
        "prune": _json(prune),
        "losses": [_json(loss) for loss in recipe.student.losses],
        "machine": _machine(recipe),
        "sentences": recipe.data.sentences,
    }
    inputs = {**_text_inputs(recipe), "student": "04-student"}
    return Stage("05-prune", prune.kind, settings, inputs, run, scratch=_CHECKPOINTS, code_version=2, together=True)


def _quantize(recipe: Recipe) -> Stage | None:
    if not recipe.quantize:
        return None

    def run(inputs: Mapping[str, Path], out: Path, trace: Trace) -> None:
        from potstill.quantize.calibration import draw_text, load_rows
        from potstill.quantize.stage import quantize_model

        for base, stage in _bases(recipe).items():
            for scheme in recipe.quantize:
                name, num_tokens = f"{base}-{label_of(scheme)}", text_tokens_of(scheme)
                told = trace.about(variant=name)
                text = draw_text(load_rows(inputs["data"]), num_tokens, told) if num_tokens else None
                quantize_model(scheme, inputs[stage] / "model", out / name, told, text)

    settings = {"schemes": [_json(scheme) for scheme in recipe.quantize]}
    inputs = _base_inputs(recipe)
    if any(text_tokens_of(scheme) for scheme in recipe.quantize):
        inputs["data"] = "01-data"
    return Stage("06-quantize", "round", settings, inputs, run, code_version=3)


def _export(recipe: Recipe) -> Stage | None:
    if not recipe.export:
        return None

    def run(inputs: Mapping[str, Path], out: Path, trace: Trace) -> None:
        from potstill.export.stage import export_variants

        variants = {f"{base}-float32": inputs[stage] / "model" for base, stage in _bases(recipe).items()}
        for base in _bases(recipe):
            for scheme in recipe.quantize:
                name = f"{base}-{label_of(scheme)}"
                variants[name] = inputs["quantize"] / name
        export_variants(recipe.export, variants, out, trace)

    inputs = _base_inputs(recipe)
    if recipe.quantize:
        inputs["quantize"] = "06-quantize"
    formats = {"formats": [_json(export) for export in recipe.export]}
    return Stage("07-export", "files", formats, inputs, run, code_version=2)


def _evaluate(recipe: Recipe) -> Stage:
    def run(inputs: Mapping[str, Path], out: Path, trace: Trace) -> None:
        from potstill.evaluate.stage import evaluate_models

        evaluate_models(recipe.evaluate, inputs, out, trace)

    inputs = {"data": "01-data", **_base_inputs(recipe)}
    if recipe.teacher is not None:
        inputs["teacher"] = "02-teacher"
    if recipe.quantize:
        inputs["quantize"] = "06-quantize"
    if recipe.export:
        inputs["export"] = "07-export"
    return Stage("08-evaluate", "measure", {"evaluate": _json(recipe.evaluate)}, inputs, run)


def _text_inputs(recipe: Recipe) -> dict[str, str]:
    inputs = {"data": "01-data"}
    if recipe.teacher is not None:
        inputs["teacher"] = "02-teacher"
    if recipe.labels is not None:
        inputs["labels"] = "03-labels"
    return inputs


def _bases(recipe: Recipe) -> dict[str, str]:
    """The float32 models that variants are made of: name → role."""
    return {"student": "student", "pruned": "pruned"} if recipe.prune else {"student": "student"}


def _base_inputs(recipe: Recipe) -> dict[str, str]:
    return {"student": "04-student", "pruned": "05-prune"} if recipe.prune else {"student": "04-student"}


def _machine(recipe: Recipe) -> dict[str, Any]:
    """What a result depends on of the machine: not how many processes share the work, nor what each keeps of it."""
    return {name: value for name, value in _json(recipe.machine).items() if name != "parallel"}


def _json(settings: Any) -> dict[str, Any]:  # noqa: ANN401 - any settings class
    dumped: dict[str, Any] = settings.model_dump(mode="json", by_alias=True)
    return dumped
