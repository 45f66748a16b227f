from hypothesis import given
from hypothesis import strategies as st

from potstill.data.passages import Passage
from potstill.data.splits import SIDES, distinct_paragraphs, held_out_share, split_by_hash

SHARES = {"test": 0.2, "validation": 0.3}
SENTENCES = st.sampled_from([f"Sentence number {number} stands here." for number in range(30)])
PASSAGES = st.lists(
    st.builds(lambda sentences: Passage(" ".join(sentences)), st.lists(SENTENCES, min_size=1, max_size=20)),
    max_size=30,
)


@given(PASSAGES)
def test_no_sentence_stands_on_two_sides_or_twice_on_one(passages):
    paragraphs, num_repeated = distinct_paragraphs(passages)
    sides = split_by_hash(paragraphs, SHARES)
    kept = [sentence for side in SIDES for paragraph in sides[side] for sentence in paragraph.sentences]
    assert len(set(kept)) == len(kept)
    told = [sentence for passage in passages for sentence in passage.text.split(". ")]
    assert len(kept) + num_repeated == len(told)


@given(st.lists(st.text(alphabet="abc ", min_size=1).filter(str.strip), unique=True, max_size=30), st.randoms())
def test_the_order_of_distinct_passages_changes_nothing(texts, random):
    """Answers are whole units, so no repeated sentence ties one to another."""
    passages = [Passage(text, prompt=f"Question {number}") for number, text in enumerate(texts)]
    shuffled = passages[:]
    random.shuffle(shuffled)
    assert distinct_paragraphs(passages) == distinct_paragraphs(shuffled)


def test_all_answers_to_one_prompt_stand_on_one_side():
    passages = [Passage(f"Answer {n}.", prompt=f"Question {n % 40}?") for n in range(400)]
    paragraphs, num_repeated = distinct_paragraphs(passages)
    sides = split_by_hash(paragraphs, SHARES)
    prompts = [{paragraph.prompt for paragraph in sides[side]} for side in SIDES]
    assert num_repeated == 0
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 40


def test_a_text_without_blank_lines_still_has_all_sides():
    one = Passage(" ".join(f"This is sentence {number} of the text." for number in range(600)))
    sides = split_by_hash(distinct_paragraphs([one])[0], SHARES)
    assert all(sides[side] for side in SIDES)


def test_shares_are_held_and_never_more_than_a_tenth():
    assert held_out_share(500, 50, 10**9) == 500 * 50 * 5 / 10**9
    assert held_out_share(500, 50, 1000) == 0.1
    assert held_out_share(500, 50, 0) == 0.1


def test_half_a_surrogate_pair_is_hashed_like_any_text():
    """Sources refuse it; the split would not be what breaks."""
    assert distinct_paragraphs([Passage("Half \ud800 a pair.")])[1] == 0
