"""The two listeners: what people and logs see of a run, whatever strings it meets."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from potstill.terminal import LiveListener, PlainListener, count, listening, megabytes, visible

HOSTILE = "\x1b[31m[bold]red[/bold]\x1b[0m\r\n\u202eabc :smile:"


def event(kind, name="", value=None, *, stage="04-student", **tags):
    return {
        "time": "",
        "stage": stage,
        "kind": kind,
        "name": name,
        "value": value,
        "unit": tags.pop("unit", None),
        **tags,
    }


def stage(number=4, *, cached=False, name="04-student"):
    start = event("stage_start", "distil", {"number": number, "of": 8, "cached": cached}, stage=name)
    cost = {"seconds": 61.25, "peak_memory_bytes": 512_000_000, "cached": cached}
    return start, event("stage_end", "distil", cost, stage=name)


def progress(done, total=100):
    return event("progress", "student", {"done": done, "total": total}, unit="tokens")


@given(st.text())
def test_visible_text_has_no_character_that_acts(text):
    """Whatever goes in, what comes out is one line of printable characters."""
    shown = visible(text)
    assert len(shown.splitlines()) <= 1
    assert all(character.isprintable() or character.isspace() for character in shown)
    assert "\x1b" not in shown


def test_visible_text_keeps_letters_of_every_script():
    """Only what acts on a terminal is spelled out; words stay words."""
    assert visible("naïve 日本語 مرحبا 🙂") == "naïve 日本語 مرحبا 🙂"
    assert visible("a\tb\u202ec") == "a\\tb\\u202ec"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0, "0"), (0.5, "0.5"), (999, "999"), (9_400, "9.4k"), (3_100_000, "3.1M"), (175e9, "175B")],
)
def test_counts_are_short(value, shown):
    """A count takes a few characters at any size."""
    assert count(value) == shown


def test_megabytes_have_the_digits_that_tell():
    """Three digits or so, and thousands separated."""
    assert [megabytes(value) for value in (None, 1_234_567, 52_345_678, 4_321_000_000)] == [
        "-",
        "1.23",
        "52.3",
        "4,321",
    ]


def test_plain_lines_tell_start_and_cost_of_every_stage():
    """A log shows what began, what it cost, and nothing of a cached stage's start."""
    stream = io.StringIO()
    listener = PlainListener(stream)
    for told in (*stage(3, cached=True, name="03-labels"), *stage(4)):
        listener(told)
    assert stream.getvalue().splitlines() == [
        "3/8 labels                  cached",
        "4/8 student ...",
        "4/8 student       61.2 s      512 MB",
    ]


def test_plain_progress_is_at_most_a_line_in_ten_seconds():
    """A log of hours stays readable."""
    seconds = iter(range(1000))
    stream = io.StringIO()
    listener = PlainListener(stream, clock=lambda: next(seconds) * 0.5)
    for done in range(100):
        listener(progress(done))
    assert 3 <= len(stream.getvalue().splitlines()) <= 11
    assert "student: " in stream.getvalue()
    assert " of 100 tokens" in stream.getvalue()


def test_observations_name_model_and_epoch():
    """A sentence about an epoch says which."""
    stream = io.StringIO()
    PlainListener(stream)(event("note", "observation", "learns fast", model="twin", epoch=3))
    assert stream.getvalue() == "    twin epoch 3: learns fast\n"


@pytest.mark.parametrize("width", [30, 80, 120])
def test_bars_stay_inside_the_terminal(width):
    """No line is wider than the terminal, at any width; the bar goes when the stage ends and its line stays."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width, color_system=None, markup=False)
    start, end = stage()
    with LiveListener(console) as listener:
        for told in (start, progress(50), event("warning", "warning", "w" * 200), progress(100), end):
            listener(told)
            listener._progress.refresh()
    lines = [_without_control(line) for line in stream.getvalue().replace("\r", "\n").splitlines()]
    assert max(map(len, lines)) <= width
    assert any("4/8 student" in line for line in lines)


def test_a_stage_ends_with_its_own_models_last_observation():
    """One sentence under the line, indented, about the student and not about its twin."""
    stream = io.StringIO()
    console = Console(file=stream, width=60, color_system=None, markup=False)
    start, end = stage()
    with LiveListener(console) as listener:
        listener(start)
        for epoch in (1, 2):
            listener(event("note", "observation", f"word {epoch} " * 9, model="student", epoch=epoch))
        listener(event("note", "observation", "not this", model="twin", epoch=2))
        listener(end)
    lines = [line.rstrip() for line in stream.getvalue().splitlines() if line.strip()]
    assert lines[1].startswith("    student epoch 2: word 2")
    assert all(line.startswith("    ") for line in lines[1:])
    assert "not this" not in stream.getvalue()


@pytest.mark.parametrize("kind", ["warning", "fallback", "note", "progress", "stage_start"])
@pytest.mark.parametrize("terminal", [True, False])
def test_hostile_strings_stay_text(kind, terminal):
    """Markup, escape sequences and direction marks from a file arrive as visible characters."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=200, color_system=None, markup=False, emoji=False)
    values = {"progress": {"done": 1, "total": 2}, "stage_start": {"number": 1, "of": 2, "cached": False}}
    told = event(kind, HOSTILE, values.get(kind, HOSTILE), stage=HOSTILE, unit=HOSTILE)
    if terminal:
        with LiveListener(console) as listener:
            listener(told)
            listener._progress.refresh()
    else:
        PlainListener(stream)(told)
    assert "\x1b[31m" not in stream.getvalue()
    assert "\u202e" not in stream.getvalue()
    assert "😄" not in stream.getvalue()


def test_a_stream_that_is_no_terminal_gets_plain_lines():
    """Logs and pipes get no escape sequence."""
    stream = io.StringIO()
    with listening(stream) as listener:
        for told in stage():
            listener(told)
    assert "\x1b" not in stream.getvalue()
    assert "4/8 student" in stream.getvalue()


def _without_control(line):
    """A line as it stands on the screen: rich's cursor movements taken out."""
    out, rest = "", line
    while "\x1b[" in rest:
        before, _, rest = rest.partition("\x1b[")
        out += before
        rest = rest.lstrip("0123456789;?")[1:]
    return out + rest
