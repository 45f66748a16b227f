"""Reading tolerates what is missing and refuses what is wrong."""

import json

import pytest

from potstill.core.errors import InputError
from potstill.report.summary import read_run


def test_only_the_recipe_name_must_be_there(write_run):
    """A summary of a run that made next to nothing can still be read."""
    run = read_run(write_run({"recipe": "empty"}))
    assert run.summary.models == []
    assert run.summary.training.student == []


def test_null_parts_are_missing_parts(write_run):
    """A writer may say null where it has nothing."""
    keys = ("stages", "models", "labels", "twin", "predictions", "label_example", "warnings", "data", "hardware")
    run = read_run(write_run({"recipe": "empty", **dict.fromkeys(keys)}))
    assert run.summary.predictions == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("models", 0, "perplexity"), "good"),
        (("models", 0, "bytes"), True),
        (("training", "student", 0, "epoch"), None),
        (("stages", 1, "cached"), "perhaps"),
        (("warnings",), "one"),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_key(write_run, summary, path, value):
    """A page never draws what nobody measured; the error names the place."""
    target = summary
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    with pytest.raises(InputError, match=r"\.".join(map(str, path))):
        read_run(write_run(summary))


def test_a_figure_that_is_not_finite_is_missing_and_noted(write_run, summary):
    """A diverged model shows a dash, and the page says why."""
    summary["models"][0]["perplexity"] = "inf"
    run = read_run(write_run(summary))
    assert run.summary.models[0].perplexity is None
    assert any("perplexity is inf" in note for note in run.notes)


def test_missing_trace_and_recipe_are_noted(write_run, summary):
    """The report can be rebuilt from the summary alone, and says what it had to do without."""
    directory = write_run(summary)
    (directory / "trace.jsonl").unlink()
    (directory / "recipe.yaml").unlink()
    notes = " ".join(read_run(directory).notes)
    assert "trace.jsonl" in notes
    assert "recipe.yaml" in notes


def test_a_torn_last_line_of_the_trace_is_tolerated(write_run, summary):
    """A run that was killed while writing can be reported."""
    directory = write_run(summary)
    with (directory / "trace.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"time": "2026')
    assert len(read_run(directory).events) == len(summary["stages"])


def test_no_summary_is_an_error_for_people(tmp_path):
    """An empty directory is no run."""
    with pytest.raises(InputError, match=r"summary\.json"):
        read_run(tmp_path)


def test_lone_surrogates_in_the_summary_become_visible(write_run, summary):
    r"""JSON may say "\\ud800"; the page can't, so it shows the name."""
    summary["warnings"] = ["half \ud800"]
    directory = write_run(summary)
    assert json.loads((directory / "summary.json").read_text(encoding="utf-8"))["warnings"] == ["half \ud800"]
    assert read_run(directory).summary.warnings == ["half ⟨U+D800⟩"]
