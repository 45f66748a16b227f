import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.data.packing import pack
from potstill.data.passages import Passage
from potstill.data.sequences import epoch_order
from potstill.data.splits import distinct_paragraphs
from potstill.data.tokenizer import TextCoder, train_tokenizer

WORDS = ("red", "fox", "runs", "over", "hill", "and", "river", "while", "nobody", "sees")


@pytest.fixture(scope="module")
def coder() -> TextCoder:
    return TextCoder.of(train_tokenizer([" ".join(WORDS) * 5], 300), where="test")


def sentence(numbers) -> str:
    return " ".join(WORDS[number] for number in numbers).capitalize() + "."


SENTENCE = st.lists(st.integers(0, 9), min_size=1, max_size=25).map(sentence)
PARAGRAPHS = st.lists(st.lists(SENTENCE, min_size=1, max_size=6, unique=True), min_size=1, max_size=8)
WIDTH = st.integers(8, 40)


@given(PARAGRAPHS, WIDTH)
def test_rows_are_the_text_of_whole_sentences_and_nothing_is_lost(coder: TextCoder, texts, width):
    """Rows decode to runs of sentences; together they are every sentence, but for what is cut and counted."""
    paragraphs, _ = distinct_paragraphs([Passage(" ".join(sentences)) for sentences in texts])
    packed = pack(paragraphs, coder, tokens_per_row=width, shortest=2, most_rows=None)
    rows = packed.rows
    decoded = [
        coder.tokenizer.decode(rows.tokens_NT[row, 1 : rows.lengths_N[row]].tolist(), skip_special_tokens=True)
        for row in range(len(rows))
    ]
    kept = [sentence for paragraph in paragraphs for sentence in paragraph.sentences]
    if not packed.num_truncated:
        assert " ".join(decoded) == " ".join(kept)
    assert packed.num_short == 0
    assert (rows.lengths_N <= width).all()


@given(PARAGRAPHS, WIDTH)
def test_neither_padding_nor_the_beginning_is_scored(coder: TextCoder, texts, width):
    paragraphs, _ = distinct_paragraphs([Passage(" ".join(sentences)) for sentences in texts])
    rows = pack(paragraphs, coder, tokens_per_row=width, shortest=2, most_rows=None).rows
    tokens_BT, scored_BT = rows.rows(range(len(rows)))
    assert (tokens_BT[:, 0] == coder.beginning_id).all()
    assert not scored_BT[:, -1].any()
    assert (scored_BT.sum(-1) == rows.lengths_N - 1).all()
    for row in range(len(rows)):
        assert (rows.tokens_NT[row, rows.lengths_N[row] :] == 0).all()


@given(st.lists(st.tuples(SENTENCE, SENTENCE), min_size=1, max_size=8, unique=True), WIDTH)
def test_only_the_answer_is_scored(coder: TextCoder, pairs, width):
    paragraphs, _ = distinct_paragraphs([Passage(answer, prompt=prompt) for prompt, answer in pairs])
    packed = pack(paragraphs, coder, tokens_per_row=width, shortest=2, most_rows=None)
    rows = packed.rows
    assert len(rows) + packed.num_short == len(paragraphs)
    if not len(rows):
        return
    _, scored_BT = rows.rows(range(len(rows)))
    for row in range(len(rows)):
        prompt = coder.tokenizer.decode(rows.tokens_NT[row, 1 : rows.prompts_N[row]].tolist())
        assert prompt.removesuffix("\n") in {asked for asked, _ in pairs}
        assert not scored_BT[row, : rows.prompts_N[row] - 1].any()
        assert scored_BT[row].sum() == rows.lengths_N[row] - rows.prompts_N[row] > 0


def test_the_end_token_stands_only_where_the_paragraph_ends(coder: TextCoder):
    paragraphs, _ = distinct_paragraphs([Passage("Red fox runs. Nobody sees the river. Over hill and river.")])
    rows = pack(paragraphs, coder, tokens_per_row=16, shortest=2, most_rows=None).rows
    last = rows.tokens_NT[np.arange(len(rows)), rows.lengths_N - 1]
    assert len(rows) > 1
    assert (last[:-1] != coder.end_id).all()
    assert last[-1] == coder.end_id


def test_long_sentences_are_cut_and_short_rows_left_out_and_both_counted(coder: TextCoder):
    long, short = sentence(range(10)) * 3, "Red."
    paragraphs, _ = distinct_paragraphs([Passage(long), Passage(short)])
    packed = pack(paragraphs, coder, tokens_per_row=12, shortest=6, most_rows=None)
    assert (len(packed.rows), packed.num_truncated, packed.num_short) == (1, 1, 1)
    assert packed.rows.lengths_N.tolist() == [12]


def test_a_cap_on_rows_takes_the_first_of_them(coder: TextCoder):
    paragraphs, _ = distinct_paragraphs([Passage(sentence([a, b, a])) for a in range(10) for b in range(10)])
    everything = pack(paragraphs, coder, tokens_per_row=16, shortest=2, most_rows=None).rows
    some = pack(paragraphs, coder, tokens_per_row=16, shortest=2, most_rows=7).rows
    assert len(some) == 7
    assert (some.tokens_NT == everything.tokens_NT[:7]).all()


@given(st.integers(0, 2**32 - 1), st.integers(0, 100), st.integers(0, 300))
def test_the_order_of_an_epoch_is_a_pure_function(seed, epoch, num_sequences):
    order = epoch_order(seed, epoch, num_sequences)
    np.random.default_rng(1).random(10)
    assert (order == epoch_order(seed, epoch, num_sequences)).all()
    assert sorted(order.tolist()) == list(range(num_sequences))
