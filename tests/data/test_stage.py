import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from potstill.core.errors import BugError, InputError
from potstill.core.settings import parse_settings
from potstill.data.sequences import PackedSequences
from potstill.data.settings import DataSettings
from potstill.data.sources import source_fingerprint
from potstill.data.tokenizer import train_tokenizer


def source_of(path: Path) -> dict[str, object]:
    return {"kind": "files", "paths": [str(path)]}


def digests(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def texts(out: Path, split: str) -> set[str]:
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    rows = PackedSequences.load(out, split)
    return {tokenizer.decode(rows.tokens_NT[row, 1 : rows.lengths_N[row]].tolist()) for row in range(len(rows))}


def test_the_layout_is_what_the_other_stages_read(run_data, story):
    run = run_data({"source": source_of(story)})
    train, validation, test = (PackedSequences.load(run.out, split) for split in ("train", "validation", "test"))
    facts = json.loads((run.out / "data.json").read_text(encoding="utf-8"))
    assert (len(train), len(validation), len(test)) == (20, 5, 5)
    assert train.tokens_NT.dtype == np.uint16
    assert train.tokens_per_sequence == 24
    assert facts["vocabulary"] == len(AutoTokenizer.from_pretrained(run.out / "tokenizer"))
    assert facts["beginning_id"] == 0
    assert facts["sentences"]["train"] == 20
    assert facts["source"]["kind"] == "files"
    assert facts["example"].startswith("<|endoftext|>The ")
    assert train.num_scored > 0


def test_no_row_stands_on_two_sides(run_data, story):
    run = run_data({"source": source_of(story), "teacher_sentences": "all"})
    sides = [texts(run.out, split) for split in ("train", "validation", "test")]
    assert sum(map(len, sides)) == len(set.union(*sides))


def test_the_same_settings_give_the_same_bytes_also_over_a_half_written_try(run_data, story):
    first = run_data({"source": source_of(story)}, "first")
    second_out = first.out.parent / "second"
    second_out.mkdir()
    (second_out / "train.tokens.npy").write_bytes(b"half a fi")
    (second_out / "tokenizer").mkdir()
    second = run_data({"source": source_of(story)}, "second")
    assert digests(first.out) == digests(second.out)


def test_what_a_student_sees_is_a_part_of_what_its_teacher_sees(run_data, story):
    """The rows of a smaller run are the first rows of a larger one."""
    small = PackedSequences.load(run_data({"source": source_of(story)}, "small").out, "train")
    large = PackedSequences.load(run_data({"source": source_of(story), "teacher_sentences": 40}, "large").out, "train")
    assert len(large) == 40
    assert (large.tokens_NT[:20] == small.tokens_NT).all()


def test_less_text_than_asked_for_is_a_warning_with_both_figures(run_data, story):
    run = run_data({"source": source_of(story), "sentences": "100k"})
    warnings = run.named("warning")
    assert any("train: the text gives" in text and "100,000" in text for text in warnings)


def test_a_vocabulary_the_text_cannot_give_is_a_warning(run_data, story):
    run = run_data({"source": source_of(story), "tokenizer": {"kind": "train", "vocabulary": 50_000}})
    assert any("vocabulary" in text and "50,000" in text for text in run.named("warning"))


def test_inputs_and_outputs_are_told_with_examples(run_data, story):
    run = run_data({"source": source_of(story)})
    (taken,) = run.named("input")
    assert taken["shape"] == [240]
    assert "lived by the" in taken["example"]
    assert [given["shape"] for given in run.named("output")] == [[20, 24], [5, 24], [5, 24]]


@pytest.mark.parametrize("content", ["", " \n\n \n", "Short.\n\nToo."])
def test_a_corpus_without_rows_is_refused(run_data, tmp_path, content):
    path = tmp_path / "empty.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"data\.source"):
        run_data({"source": source_of(path), "shortest_sentence": 20})


def test_skipped_input_is_warned_of_and_counted(run_data, story, tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [json.dumps({"text": text}) for text in story.read_text(encoding="utf-8").split("\n\n")]
    path.write_text("\n".join([*rows, '{"body": 1}', "{"]), encoding="utf-8")
    with pytest.raises(InputError, match="no field 'text'"):
        run_data({"source": source_of(path)})
    run = run_data({"source": source_of(path), "on_bad_input": "skip"})
    assert len([text for text in run.named("warning") if text.startswith("skipped 1: ")]) == 2
    facts = json.loads((run.out / "data.json").read_text(encoding="utf-8"))
    assert facts["dropped"]["unusable"] == {"no field 'text'": 1, "no JSON": 1}


def test_answers_are_scored_and_their_prompts_are_not(run_data, tmp_path):
    path = tmp_path / "answers.jsonl"
    rows = [{"q": f"What is {a} and {b}?", "m": {"s": f"It is {a + b}."}} for a in range(20) for b in range(20)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    source = {"kind": "answers", "paths": [str(path)], "prompt": "q", "answer": "m.s"}
    run = run_data({"source": source, "tokens_per_sentence": 32})
    train = PackedSequences.load(run.out, "train")
    tokenizer = AutoTokenizer.from_pretrained(run.out / "tokenizer")
    tokens_BT, scored_BT = train.rows([0])
    scored = tokens_BT[0, 1:][scored_BT[0, :-1]].tolist()
    assert tokenizer.decode(scored, skip_special_tokens=True).startswith("It is ")


def test_the_teachers_own_tokenizer_is_used_and_saved(run_data, story, tmp_path):
    train_tokenizer(["The red fox lived by the river."] * 9, 290).save_pretrained(tmp_path / "teacher")
    settings = {"source": source_of(story), "tokenizer": {"kind": "teacher"}, "tokens_per_sentence": 80}
    run = run_data(settings, inputs={"teacher_model": tmp_path / "teacher"})
    saved = AutoTokenizer.from_pretrained(run.out / "tokenizer")
    assert saved.get_vocab() == AutoTokenizer.from_pretrained(tmp_path / "teacher").get_vocab()
    with pytest.raises(BugError):
        run_data(settings)


def test_the_fingerprint_changes_with_the_bytes_of_a_file(story):
    settings = parse_settings(DataSettings, {"source": source_of(story)}, source="test")
    before = source_fingerprint(settings)
    story.write_text("Another text.", encoding="utf-8")
    assert source_fingerprint(settings) != before


def test_the_docstrings_of_a_package_go_the_whole_way(run_data):
    run = run_data({"source": {"kind": "docstrings", "packages": ["pydantic"]}})
    facts = json.loads((run.out / "data.json").read_text(encoding="utf-8"))
    assert facts["source"]["packages"].keys() == {"pydantic"}
    assert len(PackedSequences.load(run.out, "train")) == 20
