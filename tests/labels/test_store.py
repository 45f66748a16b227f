"""The label store: what is written is what is read, in any order, and after any interruption."""

import numpy as np
import pytest
import torch

from potstill.core.errors import BugError, InputError
from potstill.data.sequences import PackedSequences
from potstill.labels.codec import codec_of
from potstill.labels.draws import level_of, logprob_of_level
from potstill.labels.settings import Dense, Sampled, TopK
from potstill.labels.weights import weight_of_level


def contents(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.is_file()}


def assert_equal(labels, others):
    for name, tensor in vars(labels).items():
        assert torch.equal(tensor, getattr(others, name)), name


@pytest.mark.parametrize("kind", [TopK(k=6), TopK(k=40), Dense()], ids=str)
def test_rows_come_back_in_the_order_asked_for(tmp_path, sequences, make_store, open_store, kind):
    """Flattened as ``tokens[scored_BT]`` flattens: any rows, any order, rows twice, rows without a scored position."""
    labels = make_store(tmp_path, kind)
    codec = codec_of(kind, 40)
    stored = codec.decode(codec.encode(labels))
    row_of_P = np.repeat(np.arange(10), [sequences.rows([row])[1].sum() for row in range(10)])
    store = open_store(tmp_path)
    for rows_B in ([*range(10)], [7, 0, 9, 4], [2], [2, 2, 3], np.array([9, 9, 1]), []):
        positions_P = [position for row in rows_B for position in np.flatnonzero(row_of_P == row)]
        _, scored_BT = sequences.rows(np.asarray(rows_B, dtype=np.int64))
        read = store.read(rows_B)
        assert len(read) == scored_BT.sum()
        assert_equal(read, stored.at(torch.tensor(positions_P, dtype=torch.int64)))


@pytest.mark.parametrize("temperature", [1.0, 1.5])
@pytest.mark.parametrize("num_draws", [1, 7, 200])
def test_draws_come_back_as_counts_in_the_order_asked_for(
    tmp_path, sequences, make_store, open_store, num_draws, temperature
):
    """Every count, weight, likeliest token and each row's summed entropy exactly; the order of the draws is gone."""
    drawn = make_store(tmp_path, Sampled(draws=num_draws, temperature=temperature))
    row_of_P = np.repeat(np.arange(10), sequences.scored_by_row)
    store = open_store(tmp_path)
    for rows_B in ([*range(10)], [7, 0, 9, 4], [2], [2, 2, 3], np.array([9, 9, 1]), []):
        positions_P = [position for row in rows_B for position in np.flatnonzero(row_of_P == row)]
        read = store.read(rows_B)
        assert len(read) == len(positions_P)
        given = drawn.at(torch.tensor(positions_P, dtype=torch.int64))
        shares_PV = torch.zeros(len(read), 40).scatter_add_(1, read.ids_PK, read.weights_PK)
        weights_PN = torch.ones(given.draws_PN.shape)
        if given.weight_levels_PN is not None:
            weights_PN = torch.from_numpy(weight_of_level(given.weight_levels_PN.numpy().astype(np.uint16)))
        expected_PV = torch.zeros(len(read), 40).scatter_add_(1, given.draws_PN, weights_PN / num_draws)
        torch.testing.assert_close(shares_PV, expected_PV, rtol=1e-5, atol=1e-6)
        assert torch.equal(read.likeliest_P, given.likeliest_P)
        for row in {*np.asarray(rows_B).tolist()}:
            mine = torch.tensor([int(row_of_P[position]) == row for position in positions_P], dtype=torch.bool)
            torch.testing.assert_close(
                read.entropies_P[mine].sum(), given.entropies_P[mine].sum(), rtol=1e-6, atol=1e-6
            )


def test_only_the_first_rows_need_be_decoded(tmp_path, make_store, open_store):
    """The shards that hold them can be read, the others not; the whole is checked all the same."""
    make_store(tmp_path, Sampled(draws=7))
    whole, part = open_store(tmp_path), open_store(tmp_path, first_rows=5)
    assert_equal(part.read([7, 0]), whole.read([7, 0]))
    assert part.facts == whole.facts
    with pytest.raises(IndexError):
        part.read([8])
    last = tmp_path / "shard-00000008.labels"
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(InputError, match="shard-00000008"):
        open_store(tmp_path, first_rows=5)


def test_draws_tell_what_the_teacher_gives_to_the_true_tokens(tmp_path, make_store, open_store):
    drawn = make_store(tmp_path / "drawn", Sampled(draws=7))
    told_P = open_store(tmp_path / "drawn").true_logprobs
    assert np.array_equal(told_P, logprob_of_level(level_of(drawn.true_logprobs_P.numpy()).astype(np.uint8)))
    make_store(tmp_path / "kept", TopK(k=6))
    assert open_store(tmp_path / "kept").true_logprobs is None


def test_the_true_tokens_log_probability_is_kept_to_two_percent():
    logprobs_P = -np.linspace(0, 28, 1000, dtype=np.float32)
    back_P = logprob_of_level(level_of(logprobs_P).astype(np.uint8))
    assert (np.abs(back_P - logprobs_P) <= 0.01 + 0.0105 * 2 * np.sqrt(-logprobs_P)).all()
    assert level_of(np.array([-np.inf, -1e6, 0.0], dtype=np.float32)).tolist() == [255, 255, 0]


def test_facts_count_every_file(tmp_path, sequences, make_store, open_store):
    make_store(tmp_path, TopK(k=6))
    store = open_store(tmp_path)
    num_bytes = sum(len(content) for content in contents(tmp_path).values())
    assert store.facts == {
        "kind": "top_k",
        "tokens": sequences.num_scored,
        "bytes": num_bytes,
        "bytes_per_token": num_bytes / sequences.num_scored,
    }
    assert store.kind == TopK(k=6)
    assert store.vocabulary == 40
    make_store(tmp_path / "draws", Sampled(draws=3))
    num_bytes = sum(len(content) for content in contents(tmp_path / "draws").values())
    assert open_store(tmp_path / "draws").facts["bytes"] == num_bytes


@pytest.mark.parametrize("kind", [TopK(k=6), Sampled(draws=5)], ids=str)
@pytest.mark.parametrize("order", [[2, 0, 1], [1], []])
def test_an_interrupted_store_ends_in_the_same_bytes(tmp_path, sequences, make_writer, make_store, order, kind):
    """Some shards are there, one is cut, one is a left-over; going on writes the rest and no more."""
    labels = make_store(tmp_path / "whole", kind)
    first = make_writer(tmp_path / "killed", kind)
    ranges = first.missing()

    def write(writer, rows):
        start, stop = (sequences.first(end).num_scored for end in (rows.start, rows.stop))
        halfway = (start + stop) // 2
        writer.write(rows, [labels.at(slice(start, halfway)), labels.at(slice(halfway, stop))])

    for number in order:
        write(first, ranges[number])
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("shard-*")}
    for name in [f"shard-{rows.start:08d}.labels" for number, rows in enumerate(ranges) if number not in order][:1]:
        whole = (tmp_path / "whole" / name).read_bytes()
        (tmp_path / "killed" / name).write_bytes(whole[: len(whole) // 2])
        (tmp_path / "killed" / f".{name}.0123abcd.partial").write_bytes(whole[: len(whole) // 3])
    second = make_writer(tmp_path / "killed", kind)
    assert second.missing() == [rows for number, rows in enumerate(ranges) if number not in order]
    for rows in second.missing():
        write(second, rows)
    second.finish()
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())


@pytest.mark.parametrize(
    "change",
    [{"teacher_fingerprint": "other"}, {"tokenizer_fingerprint": "other"}, {"vocabulary": 50}, {"kind": TopK(k=7)}],
    ids=str,
)
def test_shards_of_something_else_are_written_again(tmp_path, make_store, make_writer, change):
    make_store(tmp_path, TopK(k=6))
    kind = change.pop("kind", TopK(k=6))
    assert len(make_writer(tmp_path, kind, **change).missing()) == 3


def test_only_the_shards_of_changed_text_are_written_again(tmp_path, sequences, make_store, make_writer):
    make_store(tmp_path, TopK(k=6))
    tokens_NT = sequences.tokens_NT.copy()
    tokens_NT[5, 2] += 1
    changed = PackedSequences(tokens_NT, sequences.lengths_N, sequences.prompts_N)
    assert make_writer(tmp_path, TopK(k=6), sequences=changed).missing() == [range(4, 8)]


def test_a_smaller_store_leaves_nothing_of_a_larger_one(tmp_path, sequences, make_store, make_writer, open_store):
    """Going on in the directory of another try removes the shards that have no place any more."""
    make_store(tmp_path, TopK(k=6))
    short = sequences.first(8)
    writer = make_writer(tmp_path, TopK(k=6), sequences=short)
    assert writer.missing() == []
    writer.finish()
    assert len(open_store(tmp_path, sequences=short).read([7])) == 8


def test_there_is_no_index_while_shards_are_written(tmp_path, make_labels, make_store, make_writer, sequences):
    make_store(tmp_path, TopK(k=6))
    writer = make_writer(tmp_path, TopK(k=6), teacher_fingerprint="other")
    writer.write(range(4), [make_labels(TopK(k=6), sequences.first(4).num_scored)])
    assert not (tmp_path / "store.json").exists()
    with pytest.raises(BugError, match="2 of 3 shards are missing"):
        writer.finish()


def test_labels_of_other_rows_are_a_bug_and_leave_no_file(tmp_path, make_labels, make_writer):
    writer = make_writer(tmp_path, TopK(k=6))
    with pytest.raises(BugError, match="5 labels were given"):
        writer.write(range(4), [make_labels(TopK(k=6), 5)])
    with pytest.raises(BugError, match="no shard"):
        writer.write(range(3), [])
    assert list(tmp_path.iterdir()) == []


def test_a_text_without_rows_has_an_empty_store(tmp_path, sequences, make_writer, open_store):
    none = sequences.first(0)
    make_writer(tmp_path, TopK(k=6), sequences=none).finish()
    store = open_store(tmp_path, sequences=none)
    assert len(store.read([])) == 0
    assert store.facts["tokens"] == 0
