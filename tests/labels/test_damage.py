"""Damage and mix-ups of a label store: each is found when the store is opened, and named."""

import json
import shutil

import numpy as np
import pytest

from potstill.core.errors import InputError
from potstill.data.sequences import PackedSequences
from potstill.labels.settings import Dense, Sampled, TopK
from potstill.labels.shard import read_shard, write_shard

SHARD = "shard-00000004.labels"


@pytest.fixture(params=[TopK(k=6), Sampled(draws=5), Sampled(draws=5, temperature=2.0)], ids=str)
def store(request, tmp_path, make_store):
    make_store(tmp_path / "store", request.param)
    return tmp_path / "store"


@pytest.fixture
def drawn(tmp_path, make_store):
    make_store(tmp_path / "drawn", Sampled(draws=5))
    return tmp_path / "drawn"


def edit_index(store, edit):
    index = json.loads((store / "store.json").read_text())
    edit(index)
    (store / "store.json").write_text(json.dumps(index))


def assert_refused(open_store, store, *said, **changes):
    with pytest.raises(InputError) as caught:
        open_store(store, **changes)
    for words in said:
        assert words in str(caught.value)
    assert caught.value.next_step


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_one_flipped_bit_anywhere_in_a_shard(store, open_store, share):
    content = bytearray((store / SHARD).read_bytes())
    content[int(share * len(content))] ^= 4
    (store / SHARD).write_bytes(content)
    assert_refused(open_store, store, SHARD, "damaged")


@pytest.mark.parametrize("kept", [0, 1, 60, 300, -1])
def test_a_shard_cut_short(store, open_store, kept):
    (store / SHARD).write_bytes((store / SHARD).read_bytes()[:kept])
    assert_refused(open_store, store, SHARD)


def test_a_shard_with_something_appended(store, open_store):
    with (store / SHARD).open("ab") as file:
        file.write(b"more")
    assert_refused(open_store, store, SHARD, "damaged")


def test_a_missing_shard(store, open_store):
    (store / SHARD).unlink()
    assert_refused(open_store, store, SHARD, "missing")


def test_a_shard_in_anothers_place(store, open_store):
    shutil.copy(store / "shard-00000000.labels", store / SHARD)
    assert_refused(open_store, store, SHARD, "holds rows 0 to 4 where 4 to 8 belong")


def test_a_shard_that_the_index_does_not_list(store, open_store):
    shutil.copy(store / SHARD, store / "shard-00000012.labels")
    assert_refused(open_store, store, "shard-00000012.labels", "listed")


def test_no_index(store, open_store):
    (store / "store.json").unlink()
    assert_refused(open_store, store, "no index")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1}', '{"version": 1, "shards": "many"}'])
def test_an_index_that_is_none(store, open_store, content):
    (store / "store.json").write_text(content)
    with pytest.raises(InputError, match=r"store\.json"):
        open_store(store)


def double(index):
    index["shards"].insert(1, index["shards"][0])


def swap(index):
    index["shards"][0], index["shards"][1] = index["shards"][1], index["shards"][0]


def drop_first(index):
    del index["shards"][0]


def drop_last(index):
    del index["shards"][-1]


def edit(**changes):
    return lambda index: index.update(changes)


def edit_shard(**changes):
    return lambda index: index["shards"][1].update(changes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (double, "twice"),
        (swap, "doesn't list"),
        (drop_first, "doesn't list"),
        (drop_last, "8 sequences where the text has 10"),
        (edit(kind={"kind": "top_k", "k": 7}), "belongs to another store"),
        (edit(kind={"kind": "top_k", "k": 13}), ".labels"),
        (edit(kind={"kind": "dense"}), ".labels"),
        (edit(vocabulary=41), "vocabulary"),
        (edit(vocabulary=100_000), ".labels"),
        (edit(version=1), "version"),
        (edit_shard(sha256="0" * 64), "another shard than the index lists"),
        (edit_shard(positions=1), "another shard than the index lists"),
        (edit_shard(sequences=3), "start"),
        (edit_shard(file="shard-00000000.labels"), ".labels"),
        (edit_shard(file="../store/shard-00000004.labels"), ".labels"),
    ],
)
def test_an_edited_index(store, open_store, change, said):
    """Nothing the index says is believed that the shards don't say too."""
    edit_index(store, change)
    assert_refused(open_store, store, said)


@pytest.mark.parametrize("what", ["teacher", "tokenizer"])
def test_labels_of_another_teacher_or_tokenizer(store, open_store, what):
    assert_refused(open_store, store, f"another {what}", "store.json", **{f"{what}_fingerprint": "other"})
    edit_index(store, edit(**{what: "other"}))
    assert_refused(open_store, store, "another store", ".labels", **{f"{what}_fingerprint": "other"})


def test_a_shard_of_another_store(tmp_path, store, make_store, open_store):
    """The same text, rows and k, labelled by another teacher."""
    make_store(tmp_path / "other", TopK(k=6), teacher_fingerprint="other")
    shutil.copy(tmp_path / "other" / SHARD, store / SHARD)
    assert_refused(open_store, store, SHARD, "another store")


def test_a_dense_shard_among_others(tmp_path, store, make_store, open_store):
    make_store(tmp_path / "other", Dense())
    shutil.copy(tmp_path / "other" / SHARD, store / SHARD)
    assert_refused(open_store, store, SHARD)


@pytest.mark.parametrize("what", ["token", "length", "prompt", "order"])
def test_labels_of_another_text(store, sequences, open_store, what):
    """One token, a row's end, a row's prompt, or the order of the rows differs."""
    tokens_NT, lengths_N, prompts_N = (np.array(array) for array in vars(sequences).values())
    if what == "token":
        tokens_NT[6, 3] += 1
    elif what == "length":
        lengths_N[6] -= 1
    elif what == "prompt":
        prompts_N[6] += 1
    else:
        tokens_NT[[6, 7]], lengths_N[[6, 7]] = tokens_NT[[7, 6]], lengths_N[[7, 6]]
    other = PackedSequences(tokens_NT, lengths_N, prompts_N)
    assert_refused(open_store, store, SHARD, "another text: row 6", sequences=other)


def test_padding_is_no_part_of_the_text(store, sequences, open_store):
    """What stands behind a row's end may be anything."""
    tokens_NT = np.array(sequences.tokens_NT)
    tokens_NT[2, 1:] = 17
    open_store(store, sequences=PackedSequences(tokens_NT, sequences.lengths_N, sequences.prompts_N))


def test_more_or_fewer_rows_than_the_text(store, sequences, open_store):
    assert_refused(open_store, store, "10 sequences where the text has 9", sequences=sequences.first(9))


def test_a_directory_that_is_not_there(tmp_path, open_store):
    assert_refused(open_store, tmp_path / "nowhere", "no index")


def test_a_missing_prior(drawn, open_store):
    (drawn / "prior.labels").unlink()
    assert_refused(open_store, drawn, "prior.labels", "missing")


def test_a_flipped_bit_in_the_prior(drawn, open_store):
    content = bytearray((drawn / "prior.labels").read_bytes())
    content[len(content) // 2] ^= 1
    (drawn / "prior.labels").write_bytes(content)
    assert_refused(open_store, drawn, "prior.labels", "damaged")


def test_the_prior_of_another_store(tmp_path, drawn, open_store, make_store, make_prior):
    make_store(tmp_path / "other", Sampled(draws=5), prior=make_prior(width=8, seed=3))
    shutil.copy(tmp_path / "other" / "prior.labels", drawn / "prior.labels")
    assert_refused(open_store, drawn, "prior.labels", "another prior")


def test_an_index_that_names_no_prior_or_another(drawn, open_store):
    for named in (None, "0" * 64):
        edit_index(drawn, edit(prior=named))
        with pytest.raises(InputError, match=r"prior|another store"):
            open_store(drawn)


@pytest.mark.parametrize("damage", ["swapped", "flipped", "shortened"])
def test_draws_that_were_sealed_again_after_damage(drawn, open_store, damage):
    """With checksum and index made to agree, the stack still doesn't end in the hash of its row's tokens."""
    shard = read_shard(drawn / SHARD)
    pieces = [shard.piece(row) for row in shard.rows]
    if damage == "swapped":
        pieces[1], pieces[3] = pieces[3], pieces[1]
    elif damage == "flipped":
        pieces[1] = pieces[1][:9] + bytes([pieces[1][9] ^ 1]) + pieces[1][10:]
    else:
        pieces[1] = pieces[1][:-4]
    lengths_N = np.array([len(piece) for piece in pieces])
    write_shard(drawn / SHARD, shard.rows, shard.binding, shard.hashes, lengths_N, pieces)
    digest = read_shard(drawn / SHARD).sha256
    edit_index(drawn, edit_shard(sha256=digest))
    assert_refused(open_store, drawn, SHARD, "row 5")
