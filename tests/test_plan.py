"""A plan tells what a run would do, exactly where that can be known, and leaves nothing behind."""

import json
import subprocess
import sys

import pytest

from potstill.core.errors import InputError, RecipeError
from potstill.core.settings import parse_settings
from potstill.plan import plan
from potstill.recipe import Recipe

KEYS = {"stage", "does", "makes", "parameters", "disk_bytes", "memory_bytes", "minutes", "state"}


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Some words stand here.\n\nMore words stand there.\n")
    return path


def recipe(text, **changes):
    content = {
        "name": "tiny",
        "data": {"source": {"kind": "files", "paths": [str(text)]}, "sentences": 100},
        "teacher": {"kind": "train", "parameters": "3M"},
        **changes,
    }
    return parse_settings(Recipe, content, source="test")


def test_a_plan_names_every_stage_with_its_cost(text, tmp_path):
    """Parameters, bytes, memory and minutes for each stage, and their totals."""
    planned = plan(recipe(text), tmp_path / "run")
    stages = {row["stage"]: row for row in planned["stages"]}
    assert list(stages) == [
        "01-data", "02-teacher", "03-labels", "04-student", "06-quantize", "07-export", "08-evaluate",
    ]  # fmt: skip
    assert all(set(row) == KEYS for row in stages.values())
    assert stages["02-teacher"]["parameters"] == pytest.approx(3e6, rel=0.03)
    assert stages["02-teacher"]["disk_bytes"] == 4 * stages["02-teacher"]["parameters"]
    assert planned["memory_bytes"] == max(row["memory_bytes"] for row in stages.values())
    assert planned["minutes"] > 0
    assert {row["state"] for row in stages.values()} == {"to do"}


def test_pruning_is_planned_where_asked_for(text, tmp_path):
    """The pruned model's size is that of the recipe's budget."""
    planned = plan(recipe(text, prune={"kind": "structured", "keep_parameters": 0.5}), tmp_path / "run")
    stages = {row["stage"]: row for row in planned["stages"]}
    assert stages["05-prune"]["parameters"] == pytest.approx(stages["04-student"]["parameters"] / 2, abs=1)


@pytest.mark.parametrize(
    ("teacher", "student", "doubted"),
    [
        ({}, {}, False),
        ({"parameters": "500k", "epochs": 10}, {}, True),
        ({"parameters": "500k", "epochs": 11}, {}, False),
        ({"parameters": "500k", "epochs": 8, "grow_from": {"blocks": 1, "epochs": 3}}, {}, False),
        ({"parameters": "500k", "sentences": 101}, {}, False),
        ({"parameters": "500k", "sentences": "all"}, {}, False),
        ({"parameters": "500k", "sentences": 50, "epochs": 20}, {}, True),
        ({}, {"parameters": "3M"}, True),
        ({}, {"parameters": "3M", "epochs": 3}, False),
        ({}, {"parameters": "3M", "losses": [{"kind": "cross_entropy"}]}, True),
    ],
)
def test_a_teacher_that_can_hardly_be_better_is_told_of_before_any_work(text, tmp_path, teacher, student, doubted):
    """No larger than its student, no other rows, no more of them in all its epochs: known from the recipe alone."""
    asked = recipe(text, teacher={"kind": "train", "parameters": "3M", **teacher}, student=student)
    assert plan(asked, tmp_path / "run")["warnings"] == list(asked.doubts)
    assert any("nothing says that the teacher" in warning for warning in asked.doubts) == doubted


def test_without_labels_or_matched_states_a_teacher_teaches_nobody(text):
    asked = recipe(
        text,
        teacher={"kind": "train", "parameters": "500k"},
        labels=None,
        student={"losses": [{"kind": "cross_entropy"}]},
    )
    assert asked.doubts == ()


def test_what_only_the_run_finds_out_is_left_open(text, tmp_path):
    """How many rows "all" is depends on the text: no number is made up."""
    changed = recipe(text, teacher={"kind": "train", "parameters": "3M", "sentences": "all"})
    planned = plan(changed, tmp_path / "run")
    assert planned["minutes_unknown"] == ["02-teacher"]


def test_a_missing_text_is_told_by_the_plan(tmp_path):
    """What the run would fail on at its start, the plan fails on too."""
    with pytest.raises(InputError, match=r"nowhere\.txt"):
        plan(recipe(tmp_path / "nowhere.txt"), tmp_path / "run")


def test_a_budget_below_the_smallest_model_is_refused(text, tmp_path):
    """A student smaller than its own embeddings can't be planned."""
    with pytest.raises(RecipeError, match="parameters"):
        plan(recipe(text, student={"parameters": 1000}), tmp_path / "run")


def test_a_plan_writes_nothing_and_imports_no_torch(text, tmp_path):
    """Neither the run directory nor anything else appears; the answer comes before torch could be imported."""
    path = tmp_path / "recipe.yaml"
    path.write_text(f"name: tiny\ndata:\n  source: {{kind: files, paths: [{text.name}]}}\n  sentences: 100\n")
    before = set(tmp_path.iterdir())
    program = (
        "import sys\nfrom potstill.cli import main\n"
        "try: main(['plan', 'recipe.yaml', '--json'])\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert json.loads(ended.stdout)["recipe"] == "tiny"
    assert ended.stderr.strip() == "False"
    assert set(tmp_path.iterdir()) == before
