import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.data.sentences import normal_space, split_sentences


@pytest.mark.parametrize(
    ("paragraph", "sentences"),
    [
        ("One ends. Two ends! Three ends? Four", ["One ends.", "Two ends!", "Three ends?", "Four"]),
        ("Some tools, e.g. Python, i.e. The language.", ["Some tools, e.g. Python, i.e. The language."]),
        ("Dr. Who met Mr. Smith. They spoke.", ["Dr. Who met Mr. Smith.", "They spoke."]),
        ("It is 3.14 or 2. Not more.", ["It is 3.14 or 2.", "Not more."]),
        ("J. R. Smith wrote it. So did I. We know.", ["J. R. Smith wrote it.", "So did I.", "We know."]),
        ('He said "stop." Then he left.', ['He said "stop."', "Then he left."]),
        ("See np.sum. it adds up. (Really.) Yes.", ["See np.sum. it adds up.", "(Really.)", "Yes."]),
        ("Wrapped\n  over\tlines. Next\none.", ["Wrapped over lines.", "Next one."]),
        ("See Fig. 3 and Eq. 4 below. Done.", ["See Fig. 3 and Eq. 4 below.", "Done."]),
        ("", []),
        ("  \n ", []),
    ],
)
def test_sentences_end_where_a_reader_ends_them(paragraph, sentences):
    assert split_sentences(paragraph) == sentences


@given(st.text())
def test_no_word_is_lost_or_made_up(text):
    """Whatever the text, the sentences joined by spaces are the text with single spaces."""
    sentences = split_sentences(text)
    assert " ".join(sentences) == normal_space(text)
    assert all(sentence and sentence == sentence.strip() for sentence in sentences)
