"""Every row of the table of models says how many fallbacks it took to make it."""

from potstill.core.trace import Trace
from potstill.summary import with_fallbacks


def test_a_row_counts_what_was_told_of_its_variant_and_its_format():
    events = []
    trace = Trace(listeners=[events.append])
    trace.about(variant="student-int4").fallback("down_proj has 172 columns: float16")
    trace.about(variant="student-int4", format="compressed-tensors").fallback("embeddings in float32")
    trace.about(variant="student-float32", format="gguf").fallback("something of the float32 file")
    trace.fallback("speed is measured with a shorter prompt")
    names = [
        ("student", "safetensors"),
        ("student", "gguf"),
        ("student-int4", "gguf"),
        ("student-int4", "compressed-tensors"),
        ("student-int8", "gguf"),
    ]
    rows = with_fallbacks([{"name": name, "format": format_} for name, format_ in names], events)
    assert [row["fallbacks"] for row in rows] == [0, 1, 1, 2, 0]
