"""Which path RUN:VARIANT means."""

import pytest

from potstill.core.errors import InputError
from potstill.variants import locate_run, variant_path


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stages = tmp_path / "runs" / "mine" / "stages"
    for place in ("02-teacher/model", "04-student/model", "04-student/twin/model", "06-quantize/student-int8"):
        (stages / place).mkdir(parents=True)
        (stages / place / "config.json").touch()
    (stages / "07-export").mkdir()
    (stages / "07-export" / "student-int8.gguf").touch()
    return stages


@pytest.mark.parametrize(
    ("variant", "place"),
    [
        ("teacher", "02-teacher/model"),
        ("student", "04-student/model"),
        ("twin", "04-student/twin/model"),
        ("student-int8", "07-export/student-int8.gguf"),
        ("student-int8.gguf", "07-export/student-int8.gguf"),
    ],
)
def test_a_variant_is_what_runs(run, variant, place):
    """A model's directory, and its file where there is one."""
    assert variant_path(f"mine:{variant}").resolve() == run / place


def test_a_config_is_looked_for_in_directories(run):
    """For a config's sake the directory is meant, never the file."""
    assert variant_path("mine:student-int8", of_config=True).resolve() == run / "06-quantize" / "student-int8"


@pytest.mark.usefixtures("run")
def test_a_run_is_a_path_or_a_name():
    """runs/mine and mine are the same run."""
    assert locate_run("mine") == locate_run("runs/mine")


@pytest.mark.parametrize("name", ["some/model", "gpt2", "a.gguf"])
@pytest.mark.usefixtures("run")
def test_other_names_are_left_alone(name):
    """What is no RUN:VARIANT is for others to find."""
    assert variant_path(name) is None


@pytest.mark.usefixtures("run")
def test_a_path_with_a_colon_is_a_path(tmp_path):
    """A file that is there is meant as it stands."""
    (tmp_path / "mine:student").mkdir()
    assert variant_path("mine:student") is None


@pytest.mark.usefixtures("run")
def test_what_is_not_there_is_answered_with_what_is():
    """The error names the variants, or the runs."""
    with pytest.raises(InputError, match="teacher, student, twin, student-int8"):
        variant_path("mine:student-int3")
    with pytest.raises(InputError, match="mine"):
        locate_run("yours")
