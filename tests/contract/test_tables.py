"""Every choice that a recipe can name has its row in the table that carries it out, and every row is a choice."""

import inspect
import typing
from pathlib import Path

import numpy as np
import pytest

from potstill import cli, costs
from potstill.core import errors
from potstill.core.settings import parse_settings
from potstill.core.trace import Trace
from potstill.data import sources
from potstill.data.sequences import PackedSequences
from potstill.data.settings import Source
from potstill.distill import settings as losses
from potstill.distill.settings import Loss
from potstill.export import stage as export_stage
from potstill.export.settings import Export
from potstill.labels.coder import coder_of
from potstill.labels.items import Items
from potstill.labels.prior import Prior
from potstill.labels.settings import LabelKind
from potstill.recipe import Recipe
from potstill.stages import stages_of

WHOLE = parse_settings(
    Recipe, {"name": "whole", "prune": {"kind": "structured", "keep_parameters": 0.5}}, source="test"
)


def members(union):
    """The settings classes of a tagged union, or the one class that stands alone."""
    if typing.get_origin(union) is typing.Annotated:
        return members(typing.get_args(union)[0])
    return set(typing.get_args(union)) or {union}


@pytest.mark.parametrize(
    ("union", "table"),
    [
        (Source, sources._READERS),
        (Source, sources._FACTS),
        (Export, export_stage._EXPORTERS),
    ],
    ids=["source readers", "source facts", "exporters"],
)
def test_a_table_has_a_row_for_every_choice(union, table):
    """Neither a choice without a function nor a function without a choice."""
    assert set(table) == members(union)


@pytest.mark.parametrize("kind", sorted(members(LabelKind), key=str), ids=lambda kind: kind.__name__)
def test_every_kind_of_label_has_a_coder(kind):
    """A label kind that can be asked for can be stored."""
    none = PackedSequences(np.zeros((0, 4), np.uint16), np.zeros(0, np.int32), np.zeros(0, np.int32))
    flat = np.zeros(100, np.int16)
    prior = Prior(
        Items.alone(100), np.zeros((100, 0), np.int8), np.zeros((4, 0, 0), np.int8), 0, 8, 0, flat, flat, flat
    )
    lengths_N, parts = coder_of(kind(), 100, none, prior).body(range(0), [])
    assert len(lengths_N) == 0
    assert b"".join(parts) == b""


def test_every_pair_of_loss_and_label_is_allowed_or_refused_with_a_reason():
    """A kind of loss or of label that is added must be thought of in the table; no row is left of one that is gone."""
    label_kinds = {typing.get_args(kind.model_fields["kind"].annotation)[0] for kind in members(LabelKind)}
    assert set(losses._REFUSED) == {typing.get_args(loss.model_fields["kind"].annotation)[0] for loss in members(Loss)}
    assert all(set(row) >= {*label_kinds, None} for row in losses._REFUSED.values())


@pytest.mark.parametrize("stage", stages_of(WHOLE), ids=lambda stage: stage.name)
def test_a_stage_has_the_one_signature_and_a_plan(stage):
    """(inputs, out, trace), inputs made by earlier stages, settings that go into JSON, and a row of the plan."""
    assert list(inspect.signature(stage.run).parameters) == ["inputs", "out", "trace"]
    assert typing.get_type_hints(stage.run)["trace"] is Trace
    assert typing.get_type_hints(stage.run)["out"] is Path
    earlier = [other.name for other in stages_of(WHOLE) if other.name < stage.name]
    assert set(stage.inputs.values()) <= set(earlier)
    assert stage.name in costs.COSTS


def test_the_plan_knows_no_other_stage():
    """A row of the plan for a stage that is gone would be dead."""
    assert set(costs.COSTS) == {stage.name for stage in stages_of(WHOLE)}


def test_every_error_has_an_exit_code_of_the_table():
    """The documented codes, each given by a class, and none besides."""
    classes = [getattr(errors, name) for name in errors.__all__]
    codes = {cls.exit_code for cls in classes}
    assert codes == {1, 2, 3, 4, 5, 6, 7}
    page = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert all(f"| {code} |" in page for code in codes | {0, "130, 143"})


def test_every_verb_has_a_sentence():
    """No verb without help; what the command line offers is what the documents list."""
    verbs = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    assert verbs == {"run", "plan", "inspect", "init", "show", "report", "generate", "bench", "quantize", "env"}
    assert all(command.callback.__doc__ for command in cli.app.registered_commands)
