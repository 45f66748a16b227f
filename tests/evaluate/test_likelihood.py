"""Scores against a slow float64 reference written from the definitions, and at their limits."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from potstill.core.errors import BugError, InputError
from potstill.core.trace import Trace
from potstill.data.sequences import PackedSequences
from potstill.evaluate import likelihood
from potstill.evaluate.likelihood import score

several = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def slow_scores(engine, reference, sequences):
    """Per row (nats, scored, correct, agreeing, KL), one position at a time in float64."""
    result = []
    for row in range(len(sequences)):
        tokens, length, prompt = sequences.tokens_NT[row], sequences.lengths_N[row], sequences.prompts_N[row]
        nats, scored, correct, agreeing, kl = 0.0, 0, 0, 0, 0.0
        for position in range(len(tokens) - 1):
            if not prompt <= position + 1 < length:
                continue
            own, other = (
                [float(x) for x in one.logits(tokens[None, : position + 1].astype(np.int64))[0, -1]]
                for one in (engine, reference)
            )
            own_log = [x - math.log(math.fsum(map(math.exp, own))) for x in own]
            other_log = [x - math.log(math.fsum(map(math.exp, other))) for x in other]
            true = int(tokens[position + 1])
            nats -= own_log[true]
            scored += 1
            correct += own.index(max(own)) == true
            agreeing += own.index(max(own)) == other.index(max(other))
            kl += math.fsum(math.exp(p) * (p - q) for p, q in zip(other_log, own_log, strict=True))
        result.append((nats, scored, correct, agreeing, kl))
    return [np.array(column) for column in zip(*result, strict=True)]


@several
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.0, 0.5, 3.0, 20.0]), vocabulary=st.integers(1, 40))
def test_every_sum_equals_the_slow_definition(bigram, make_sequences, seed, scale, vocabulary):
    engines = {"a": bigram(seed, vocabulary, scale), "b": bigram(seed + 1, vocabulary, scale)}
    sequences = make_sequences(seed, num=6, vocabulary=vocabulary)
    if sequences.num_scored == 0:
        return
    for name, scores in score(engines, "b", sequences, Trace()).items():
        nats, scored, correct, agreeing, kl = slow_scores(engines[name], engines["b"], sequences)
        np.testing.assert_allclose(scores.nats_N, nats, rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(scores.reference_kl_N, kl, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(scores.scored_N, scored)
        np.testing.assert_array_equal(scores.correct_N, correct)
        np.testing.assert_array_equal(scores.agreeing_N, agreeing)
        assert math.log(scores.perplexity) == pytest.approx(nats.sum() / scored.sum(), rel=1e-6, abs=1e-6)
        assert scores.accuracy == pytest.approx(correct.sum() / scored.sum())
        assert scores.agreement == pytest.approx(agreeing.sum() / scored.sum())
        assert scores.reference_kl_nats == pytest.approx(kl.sum() / scored.sum(), abs=1e-5)


def test_the_chunk_size_changes_nothing(bigram, make_sequences, monkeypatch):
    """Chunks of one row and blocks of one position give the same bytes as everything at once."""
    engines = {"a": bigram(1), "b": bigram(2)}
    whole = score(engines, "a", make_sequences(num=23), Trace())
    monkeypatch.setattr(likelihood, "_CHUNK_BYTES", 1)
    monkeypatch.setattr(likelihood, "_BLOCK_BYTES", 1)
    single = score(engines, "a", make_sequences(num=23), Trace())
    for name in engines:
        for field, value in vars(whole[name]).items():
            np.testing.assert_array_equal(getattr(single[name], field), value, err_msg=field)
    assert engines["b"].calls[1:] != engines["b"].calls[:1], "the second run really was in chunks"


def test_an_engine_is_at_no_distance_from_itself(bigram, make_sequences):
    scores = score({"one": bigram(3), "same": bigram(3)}, "one", make_sequences(), Trace())
    for one in scores.values():
        assert one.agreement == 1.0
        assert one.reference_kl_nats == 0.0


def test_without_a_reference_agreement_and_kl_are_unknown(bigram, make_sequences):
    scores = score({"one": bigram(3)}, None, make_sequences(), Trace())["one"]
    assert scores.agreement is None
    assert scores.reference_kl_nats is None
    assert scores.perplexity > 1


def test_equal_logits_give_the_vocabulary_as_perplexity_and_predict_the_lowest_id(from_table, make_sequences):
    sequences = make_sequences()
    scores = score({"flat": from_table(np.zeros((12, 12), np.float32))}, None, sequences, Trace())["flat"]
    assert scores.perplexity == pytest.approx(12, rel=1e-6)
    tokens, scored = sequences.rows(range(len(sequences)))
    zeros = (np.roll(tokens, -1, axis=1)[scored] == 0).sum()
    assert scores.correct_N.sum() == zeros


def test_extreme_logits_stay_finite(from_table, make_sequences):
    """Differences of 1e30 neither overflow nor turn into NaN; the perplexity is infinite, and says so."""
    table = np.full((12, 12), -1e30, np.float32)
    table[:, 5] = 1e30
    scores = score({"sure": from_table(table)}, "sure", make_sequences(), Trace())["sure"]
    assert np.isfinite(scores.nats_N).all()
    assert scores.perplexity == math.inf
    assert scores.reference_kl_nats == 0.0


def test_padding_and_prompt_are_never_scored(bigram):
    """Other bytes in the padding and another true token in the prompt's first place change no figure."""
    lengths, prompts = np.array([4], np.int32), np.array([2], np.int32)
    one = PackedSequences(np.array([[0, 3, 5, 7, 0, 0]], np.uint16), lengths, prompts)
    other = PackedSequences(np.array([[9, 3, 5, 7, 8, 1]], np.uint16), lengths, prompts)
    first, second = (score({"a": bigram(1)}, None, rows, Trace())["a"] for rows in (one, other))
    assert first.num_scored == 2
    np.testing.assert_array_equal(first.nats_N, second.nats_N)


def test_nothing_scored_is_refused(bigram):
    empty = PackedSequences(np.zeros((2, 4), np.uint16), np.array([1, 2], np.int32), np.array([1, 2], np.int32))
    with pytest.raises(InputError, match="no scored position"):
        score({"a": bigram(1)}, None, empty, Trace())


def test_a_token_outside_the_vocabulary_is_refused(bigram, make_sequences):
    with pytest.raises(InputError, match="knows only 12 tokens"):
        score({"a": bigram(1)}, None, make_sequences(vocabulary=300), Trace())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_refused_with_the_models_name(from_table, make_sequences, value):
    table = np.zeros((12, 12), np.float32)
    table[:, 3] = value
    with pytest.raises(InputError, match=r"'broken'.*no finite numbers"):
        score({"broken": from_table(table)}, None, make_sequences(), Trace())


def test_logits_of_another_shape_are_a_bug(bigram, make_sequences, monkeypatch):
    engine = bigram(1)
    monkeypatch.setattr(engine, "logits", lambda tokens: np.zeros((*tokens.shape, 3), np.float32))
    with pytest.raises(BugError, match="gave logits"):
        score({"a": engine}, None, make_sequences(), Trace())


def test_padded_vocabularies_are_compared_on_the_common_ids_with_a_warning(bigram, from_table, make_sequences):
    """A teacher with unused rows at the end scores exactly as without them."""
    events = []
    small = bigram(1)
    padded = np.full((12, 16), 5.0, np.float32)
    padded[:, :12] = small.table_VV
    engines = {"padded": from_table(padded), "small": small}
    scores = score(engines, "padded", make_sequences(), Trace(listeners=[events.append]))
    np.testing.assert_array_equal(scores["padded"].nats_N, scores["small"].nats_N)
    assert [event["value"] for event in events if event["kind"] == "warning"] == [
        "vocabularies differ (padded 16, small 12): all are compared on the first 12 ids"
    ]


def test_an_unknown_reference_is_a_mistake_of_the_caller(bigram, make_sequences):
    with pytest.raises(ValueError, match="none of the engines"):
        score({"a": bigram(1)}, "b", make_sequences(), Trace())


def test_progress_ends_at_the_last_sequence(bigram, make_sequences):
    events = []
    score({"a": bigram(1)}, None, make_sequences(num=9), Trace(listeners=[events.append]))
    assert events[-1]["value"] == {"done": 9, "total": 9}
