"""The trace survives what happens to it."""

import numpy as np
import pytest
import torch

from potstill.core.errors import InputError
from potstill.core.trace import Trace, num_fallbacks, read_trace, texts_told


def test_what_is_told_is_read_back(tmp_path):
    trace = Trace(tmp_path / "trace.jsonl").for_stage("04-student")
    trace.metric("loss", np.float32(0.5), "nats", epoch=3)
    trace.table("rows", [{"a": torch.tensor(2), "b": (1, 2)}])
    trace.input("text", shape=(2, 3), dtype="uint16", example="x\n\u2028y")
    events = read_trace(tmp_path / "trace.jsonl")
    assert [event["kind"] for event in events] == ["metric", "table", "input"]
    assert events[0]["value"] == 0.5
    assert events[0]["unit"] == "nats"
    assert events[0]["epoch"] == 3
    assert events[0]["stage"] == "04-student"
    assert events[1]["value"] == [{"a": 2, "b": [1, 2]}]
    assert events[2]["value"]["example"] == "x\n\u2028y"


def test_a_torn_last_line_is_dropped_and_a_torn_inner_one_refused(tmp_path):
    path = tmp_path / "trace.jsonl"
    Trace(path).note("a", "b")
    whole = path.read_text()
    path.write_text(whole + whole[:20])
    assert len(read_trace(path)) == 1
    path.write_text(whole[:20] + "\n" + whole)
    with pytest.raises(InputError, match="line 1 is no JSON"):
        read_trace(path)


def test_what_is_no_number_is_told_by_name_not_hidden(tmp_path):
    Trace(tmp_path / "t").metric("loss", float("nan"), "nats")
    assert read_trace(tmp_path / "t")[0]["value"] == "nan"


def test_progress_goes_to_listeners_only(tmp_path):
    heard = []
    trace = Trace(tmp_path / "t", listeners=[heard.append])
    trace.progress("rows", 1, 2, "rows")
    trace.warning("careful")
    assert [event["kind"] for event in heard] == ["progress", "warning"]
    assert [event["kind"] for event in read_trace(tmp_path / "t")] == ["warning"]


def test_lone_surrogates_do_not_stop_the_trace(tmp_path):
    """Text is hostile input: half a surrogate pair can't be written as UTF-8, and must not end a run."""
    Trace(tmp_path / "t").note("text", "a\ud800b")
    assert read_trace(tmp_path / "t")[0]["value"].startswith("a")


def test_fallbacks_are_counted_for_the_variant_and_format_that_they_are_about(tmp_path):
    """One told by who makes a variant counts in every format of it; the same sentence twice is one fallback."""
    trace = Trace(tmp_path / "t")
    trace.fallback("about the whole run")
    trace.about(variant="a-int4").fallback("has 172 columns")
    trace.about(variant="b-int4").fallback("has 172 columns")
    trace.about(variant="a-int4", format="gguf").fallback("float16")
    trace.about(variant="a-int4", format="gguf").fallback("float16")
    trace.about(variant="a-int4", format="gguf").warning("no fallback")
    events = read_trace(tmp_path / "t")
    assert texts_told(events, "fallback") == [
        "about the whole run",
        "a-int4: has 172 columns",
        "b-int4: has 172 columns",
        "a-int4.gguf: float16",
    ]
    counts = [num_fallbacks(events, *about) for about in (("a-int4", "gguf"), ("a-int4", "onnx"), ("b-int4", None))]
    assert counts == [2, 1, 1]
