"""Results for people: whole at 80 and 120 columns, and only visible characters."""

import io

import pytest

from potstill.tables import print_summary, print_tree
from potstill.terminal import console_for


def model(name, engine="llama.cpp", dtype="int8", **changes):
    row = {
        "name": name,
        "format": "gguf",
        "engine": engine,
        "dtype": dtype,
        "parameters": 1_234_567,
        "bytes": 1_311_728,
        "perplexity": 123.456,
        "perplexity_interval_95": [118.2, 129.9],
        "agreement_with_teacher": 0.654,
        "kl_to_teacher_nats": 0.321,
        "prefill_tokens_per_s": 26_012.0,
        "decode_tokens_per_s": 1104.0,
        "peak_memory_bytes": 100_000_000,
    }
    return {**row, **changes}


@pytest.fixture
def summary():
    return {
        "recipe": "quickstart",
        "seconds": 171.25,
        "peak_memory_bytes": 1_234_000_000,
        "stages": [{"name": "04-student", "seconds": 61.25, "peak_memory_bytes": 512_000_000, "cached": False}],
        "training": {"student": [{"epoch": 1, "train_loss_nats": 2.5, "validation_accuracy": 0.31}]},
        "models": [
            model("student-float16", dtype="float16", bytes=220_123_456),
            model("student-int8"),
            model("teacher", perplexity=None),
        ],
        "warnings": ["a warning"],
        "fallbacks": [],
    }


def printed(printer, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    stream = io.StringIO()
    printer(console_for(stream))
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_the_closing_table_is_whole_on_every_terminal(summary, width, monkeypatch):
    """Every figure of every model stands there uncut, no line is too wide, and each model takes one line."""
    text = printed(lambda console: print_summary(console, summary, stages=False), width, monkeypatch)
    assert max(map(len, text.splitlines())) <= width
    (line,) = [line for line in text.splitlines() if line.startswith("student-int8")]
    for figure in ("llama.cpp int8", "1.31", "123.5 [118, 130]", "0.654", "26k", "1.1k"):
        assert figure in line
    assert "…" not in text
    assert ("1.23M" in line) == (width == 120)
    assert text.splitlines()[-1] == "quickstart: 171.2 s, at most 1,234 MB of memory, 1 warning, no fallbacks"


def test_stages_and_epochs_are_shown_when_asked_for(summary, monkeypatch):
    """``potstill show`` adds what each stage cost and how the student learned; a missing figure is a dash."""
    text = printed(lambda console: print_summary(console, summary, stages=True), 80, monkeypatch)
    assert "1/1 student" in text
    assert "61.2 s" in text
    (epoch,) = [line.split() for line in text.splitlines() if line.strip().startswith("1  ")]
    assert epoch == ["1", "2.500", "-", "0.310", "-"]


def test_names_from_files_stay_text(summary, monkeypatch):
    """A model's name can neither colour nor move anything."""
    summary["models"] = [model("\x1b[31m[red]x")]
    text = printed(lambda console: print_summary(console, summary, stages=True), 120, monkeypatch)
    assert "\x1b" not in text
    assert "\\x1b[31m[red]x" in text


def test_a_tree_of_facts_is_readable(monkeypatch):
    """Mappings indent, lists of mappings become tables, numbers get separators."""
    facts = {
        "total_bytes": 1_000_000,
        "parts": {"mlp": 5, "tied": True},
        "stages": [{"name": "a", "minutes": 1.5}],
        "none": None,
    }
    text = printed(lambda console: print_tree(console, facts), 80, monkeypatch)
    assert "total bytes: 1,000,000" in text
    assert "\n  mlp: 5\n  tied: yes\n" in text
    assert "minutes" in text
    assert "none: -" in text
