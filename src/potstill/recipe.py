"""The schema of a recipe: everything a run depends on, validated before the first second of work."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from potstill.core.errors import PotstillError, RecipeError
from potstill.core.settings import Settings, parse_settings
from potstill.data.settings import Answers, DataSettings, DataStageSettings, TeacherTokenizer, TrainTokenizer
from potstill.distill.settings import block_pairs, check_losses, hidden_states_of
from potstill.evaluate.settings import EvaluateSettings
from potstill.export.settings import Export, GgufExport
from potstill.labels.settings import LabelKind, TopK
from potstill.model.shapes import shape_for_budget
from potstill.prune.settings import StructuredPruning
from potstill.quantize.settings import Float16, Int8, Scheme, repeated_labels
from potstill.train.settings import (
    LoadedTeacher,
    Machine,
    ParallelKind,
    StudentSettings,
    TeacherChoice,
    TrainedTeacher,
    check_growth,
    teacher_in_doubt,
)

__all__ = ["Recipe", "dump_recipe", "load_recipe"]


class Recipe(Settings):
    """Text and a teacher in; student, variants, files and a report out.

    ``teacher: null`` trains the student on the true tokens alone, as for a black-box teacher's answers; ``labels`` is
    then null too. ``threads: null`` leaves the number to PyTorch.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: Annotated[int, Field(ge=1)] | None = None
    parallel: ParallelKind = "ddp"
    data: DataSettings = DataSettings()
    teacher: TeacherChoice | None = TrainedTeacher()
    labels: LabelKind | None = TopK()
    student: StudentSettings = StudentSettings()
    prune: StructuredPruning | None = None
    quantize: tuple[Scheme, ...] = (Float16(scheme="float16"), Int8(scheme="int8"))
    export: tuple[Export, ...] = (GgufExport(format="gguf"),)
    evaluate: EvaluateSettings = EvaluateSettings()

    @property
    def machine(self) -> Machine:
        """Seed, device, precision and what processes keep of a model, for the stages that compute."""
        return Machine(seed=self.seed, device=self.device, precision=self.precision, parallel=self.parallel)

    @property
    def data_stage(self) -> DataStageSettings:
        """The text with as many rows as student and teacher together want."""
        wanted = self.teacher.sentences if isinstance(self.teacher, TrainedTeacher) else None
        return DataStageSettings(**self.data.model_dump(), teacher_sentences=wanted)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What the user should know before the first second of work; a warning of the run, and of its plan."""
        learns = self.labels is not None or hidden_states_of(self.student.losses) is not None
        doubt = teacher_in_doubt(self.teacher, self.student, self.data.sentences) if learns else None
        return () if doubt is None else (doubt,)

    @model_validator(mode="before")
    @classmethod
    def _follow_the_teacher(cls, value: Any) -> Any:  # noqa: ANN401 - before validation it may be anything
        """A loaded teacher brings its tokenizer; without a teacher there are no labels to learn from."""
        if not isinstance(value, dict):
            return value
        value = dict(value)
        if "teacher" in value and value["teacher"] is None:
            value.setdefault("labels", None)
            student = dict(value.get("student") or {})
            student.setdefault("losses", [{"kind": "cross_entropy"}])
            value["student"] = student
        if isinstance(value.get("teacher"), dict) and value["teacher"].get("kind") == "load":
            data = dict(value.get("data") or {})
            data.setdefault("tokenizer", {"kind": "teacher"})
            value["data"] = data
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> "Recipe":
        try:
            check_losses(self.student.losses, self.labels.kind if self.labels else None)
        except PotstillError as error:
            raise ValueError(str(error)) from error
        for wrong, message in self._contradictions():
            if wrong:
                raise ValueError(message)
        return self

    def _contradictions(self) -> list[tuple[bool, str]]:
        loaded = isinstance(self.teacher, LoadedTeacher)
        own_tokenizer = isinstance(self.data.tokenizer, TeacherTokenizer)
        teacherless = self.teacher is None
        matched = hidden_states_of(self.student.losses)
        repeated = repeated_labels(self.quantize)
        return [
            (own_tokenizer and not loaded, "data.tokenizer: {kind: teacher} needs teacher: {kind: load, ...}"),
            (loaded and not own_tokenizer, "a loaded teacher reads its own tokens: data.tokenizer: {kind: teacher}"),
            (teacherless and self.labels is not None, "labels need a teacher; with teacher: null write labels: null"),
            (teacherless and self.student.start == "teacher", "student.from: teacher needs a teacher"),
            (teacherless and bool(self.student.twin), "student.twin compares with a teacher's student; there is none"),
            (
                isinstance(self.data.source, Answers) and isinstance(self.teacher, TrainedTeacher),
                "data.source: {kind: answers} is already a teacher's work; write teacher: null, or load a teacher",
            ),
            (
                teacherless and matched is not None,
                "student.losses: hidden_states needs a teacher whose weights are here; there is none",
            ),
            (
                matched is not None and matched.blocks != "auto" and self.prune is not None,
                "prune may remove blocks of the student: write hidden_states with blocks: auto",
            ),
            (bool(repeated), f"quantize makes two variants called {', '.join(repeated)}"),
            (self.prune is not None and self.labels is None, "prune heals on soft labels; it needs a teacher"),
        ]


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply ``PATH=VALUE`` overrides, values in YAML.

    Raises: RecipeError: unreadable, no YAML, an unknown key, or settings that contradict each other.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"can't be read: {error}", where=str(path)) from error
    content = _parse_yaml(text, where=str(path))
    if not isinstance(content, dict):
        raise RecipeError("is no mapping of keys to values", where=str(path), next_step="potstill init writes one")
    for override in overrides:
        _apply_override(content, override)
    recipe = parse_settings(Recipe, content, source=str(path))
    if isinstance(recipe.data.tokenizer, TrainTokenizer):
        _check_budgets(recipe, recipe.data.tokenizer.vocabulary)
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The recipe with every default spelled out, as YAML that ``load_recipe`` reads back equal."""
    content = recipe.model_dump(mode="json", by_alias=True)
    dumped: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return dumped


def _check_budgets(recipe: Recipe, vocabulary: int) -> None:
    """Fail now, not after the data stage, where a model can't be as small as asked for."""
    student = shape_for_budget(recipe.student.parameters, vocabulary)
    if isinstance(recipe.teacher, TrainedTeacher):
        teacher = shape_for_budget(recipe.teacher.parameters, vocabulary)
        if recipe.teacher.grow_from is not None:
            check_growth(recipe.teacher.grow_from, teacher.blocks)
        matched = hidden_states_of(recipe.student.losses)
        if matched is not None:
            block_pairs(matched.blocks, student.blocks, teacher.blocks)


def _parse_yaml(text: str, *, where: str) -> Any:  # noqa: ANN401 - any YAML value
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"is no YAML: {error}", where=where) from error


def _apply_override(content: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise RecipeError(f"{override!r} is not PATH=VALUE", where="--set", next_step="as in --set data.sentences=1000")
    value = _parse_yaml(text, where=f"--set {path}")
    keys = path.strip().split(".")
    place: Any = content
    for key in keys[:-1]:
        place = _step_into(place, key, path)
    last = keys[-1]
    if isinstance(place, list):
        place[_list_index(place, last, path)] = value
    else:
        place[last] = value


def _step_into(place: Any, key: str, path: str) -> Any:  # noqa: ANN401 - any YAML value
    if isinstance(place, list):
        return place[_list_index(place, key, path)]
    inner = place.get(key)
    if inner is None:
        inner = place[key] = {}
    if not isinstance(inner, dict | list):
        raise RecipeError(f"{path!r}: {key!r} is {inner!r}, which has no keys", where="--set")
    return inner


def _list_index(place: list[Any], key: str, path: str) -> int:
    if not key.isdecimal() or int(key) >= len(place):
        raise RecipeError(f"{path!r}: {key!r} is no index into {len(place)} entries", where="--set")
    return int(key)
