"""The table of stages: what a stage's fingerprint depends on, and what not."""

import pytest

from potstill.core.settings import parse_settings
from potstill.recipe import Recipe
from potstill.stages import stages_of


def recipe(**keys) -> Recipe:
    content = {"name": "tiny", "prune": {"kind": "structured", "keep_parameters": 0.7}, **keys}
    return parse_settings(Recipe, content, source="test")


def test_how_processes_share_the_work_makes_no_other_artefact():
    """Its result is that of one process, so a run that is done stays done, and any number of them goes on with it."""
    for alone, sharded in zip(stages_of(recipe()), stages_of(recipe(parallel="fsdp")), strict=True):
        assert alone.settings == sharded.settings, alone.name


@pytest.mark.parametrize("keys", [{"seed": 1}, {"precision": "bfloat16"}, {"device": "cpu"}])
def test_what_the_machine_computes_in_does(keys):
    changed = [
        before.name
        for before, after in zip(stages_of(recipe()), stages_of(recipe(**keys)), strict=True)
        if before.settings != after.settings
    ]
    assert {"02-teacher", "03-labels", "04-student", "05-prune"} <= set(changed)
