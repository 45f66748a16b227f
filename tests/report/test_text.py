"""Text of a run can't change the page around it."""

from hypothesis import given
from hypothesis import strategies as st

from potstill.report.text import harmless, harmless_json, visible


def test_controls_bidi_marks_and_surrogates_become_visible_names():
    """Nothing that turns text round, hides it or can't be encoded is left."""
    assert harmless("a\x00b\x1b[31m\u202eevil\ud800\x7f\x85") == "a␀b␛[31m⟨U+202E⟩evil⟨U+D800⟩␡⟨U+0085⟩"


def test_line_breaks_tabs_and_joiners_stay():
    """Ordinary text, emoji sequences among it, is unchanged."""
    text = "naïve\tÅ\n中文 👩\u200d💻"
    assert harmless(text) == text


@given(st.text(st.characters()))
def test_any_text_can_be_written_as_utf8(text):
    """The page can always be encoded, and cleaning twice changes nothing."""
    clean = harmless(text)
    clean.encode("utf-8")
    assert harmless(clean) == clean


def test_every_string_of_a_json_value_is_cleaned_keys_included():
    """No corner of a summary is forgotten."""
    assert harmless_json({"\u202ek": ["\x01", 1, None, {"x": "\ud800"}]}) == {
        "⟨U+202E⟩k": ["␁", 1, None, {"x": "⟨U+D800⟩"}],
    }


def test_white_space_of_a_token_is_drawn_and_the_rest_escaped():
    """A space shows as a sign of its own, unlike a real middle dot; markup stays text."""
    assert str(visible(" <b>·\n")) == (
        '<bdi class="token"><span class="ws">·</span>&lt;b&gt;·<span class="ws">↵</span></bdi>'
    )
    assert str(visible(None)) == "—"
    assert "empty" in visible("")
