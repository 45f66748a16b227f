import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from potstill.core.errors import InputError
from potstill.data import files
from potstill.data.files import answer_passages, file_facts, file_passages, find_files
from potstill.data.passages import BadInput, Passage
from potstill.data.settings import Answers, Files


def read(path: Path, policy="refuse", **more):
    bad = BadInput(policy)
    texts = [passage.text for passage in file_passages(Files(kind="files", paths=(str(path),), **more), bad)]
    return texts, bad


def test_paragraphs_of_a_text_file_stand_between_blank_lines(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfOne\r\ntwo.\r\n\r\n \r\nThree.\r\n")
    assert read(path)[0] == ["One\ntwo.", "Three."]


def test_a_field_of_jsonl_may_lie_deeper_or_hold_dots(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": {"b": "Deep."}}\n\n{"a.b": "Dotted."}\n', encoding="utf-8")
    assert read(path, field="a.b")[0] == ["Deep.", "Dotted."]


def test_a_column_of_parquet_is_read_and_a_missing_one_named(tmp_path: Path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["One.", "Two."], "n": [1, 2]}), path)
    assert read(path, field="body")[0] == ["One.", "Two."]
    with pytest.raises(InputError, match="no column for 'text'; there are: body, n"):
        read(path)
    with pytest.raises(InputError, match=r"row 1.*field 'n' holds no text"):
        read(path, field="n")


def test_a_parquet_file_that_is_none_is_refused(tmp_path: Path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 is not enough")
    with pytest.raises(InputError, match="can't be read"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"Fine.\nBroken \xff here.\n", r"a\.txt byte 13 \(line 2\): no UTF-8"),
        ("b.txt", b"\xef\xbb\xbfab\xff\n", r"b\.txt byte 5 \(line 1\): no UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}\n', r"a\.jsonl line 2 \(there are: body\): no field 'text'"),
        ("a.jsonl", b'{"text": 3}\n', r"line 1 \(int\): field 'text' holds no text"),
        ("a.jsonl", b"[1, 2]\n", r"line 1 \(there are: list\): no field 'text'"),
        ("a.jsonl", b'{"text": \n', r"line 1 \(.*\): no JSON"),
        ("a.jsonl", b"[" * 100_000 + b"\n", r"line 1 \(.*\): no JSON"),
        ("a.txt", b"A NUL \x00 here.\n", r"line 1: a NUL character"),
        ("a.jsonl", b'{"text": "half \\ud800 a pair"}\n', r"line 1: half a surrogate pair"),
    ],
)
def test_bad_input_is_refused_with_its_place_or_skipped_and_counted(tmp_path: Path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content + b'{"text": "Good."}\n')
    with pytest.raises(InputError, match=said) as raised:
        read(path)
    assert "on_bad_input: skip" in str(raised.value)
    texts, bad = read(path, "skip")
    assert sum(bad.skipped.values()) == 1
    assert "Good." in " ".join(texts)
    assert bad.sentences()[0].startswith("skipped 1: ")


def test_a_line_of_100_megabytes_is_refused_with_the_limit_and_read_in_bounded_pieces(tmp_path: Path, monkeypatch):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "First."}\n{"text": "')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n{"text": "Last."}\n')
    with pytest.raises(InputError, match=r"line 2: a line of more than 16 MiB"):
        read(path)
    longest = []
    cleaned = files._cleaned
    monkeypatch.setattr(files, "_cleaned", lambda text, *rest: (longest.append(len(text)), cleaned(text, *rest))[1])
    texts, bad = read(path, "skip")
    assert texts == ["First.", "Last."]
    assert sum(bad.skipped.values()) == 1
    assert max(longest) < 100


def test_the_place_after_a_skipped_long_line_is_right(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(files, "LONGEST_LINE_BYTES", 10)
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 35 + b"\nok\n" + b"ab\xff\n")
    _, bad = read(path, "skip")
    assert bad.first["no UTF-8"].endswith("byte 41 (line 3)")


def test_globs_are_ordered_and_each_file_is_read_once(tmp_path: Path):
    for name in ("b.txt", "a.txt", "c.md"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    assert [path.name for path in find_files([f"{tmp_path}/*.txt", f"{tmp_path}/a.txt"])] == ["a.txt", "b.txt"]
    with pytest.raises(InputError, match="no such file, and no file matches"):
        find_files([f"{tmp_path}/*.jsonl"])
    with pytest.raises(InputError, match=r"c\.md: is of no kind"):
        find_files([f"{tmp_path}/c.md"])


def test_a_name_with_brackets_is_a_file_before_it_is_a_glob(tmp_path: Path):
    path = tmp_path / "a[1].txt"
    path.write_text("x", encoding="utf-8")
    assert find_files([str(path)]) == [path]


def test_relative_paths_start_at_the_current_directory(tmp_path: Path, monkeypatch):
    (tmp_path / "a.txt").write_text("x", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert find_files(["*.txt"]) == [Path("a.txt")]


def test_the_facts_of_a_file_change_with_its_bytes(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("x", encoding="utf-8")
    before = file_facts([str(path)])
    path.write_text("y", encoding="utf-8")
    assert before != file_facts([str(path)])
    assert before["files"][0]["bytes"] == 1


def test_answers_come_with_their_prompts_and_empty_ones_are_named(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    rows = [{"q": " Why? ", "m": {"solution": "So.\n"}}, {"q": "How?", "m": {"solution": "  "}}]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    source = Answers(kind="answers", paths=(str(path),), prompt="q", answer="m.solution")
    bad = BadInput("skip")
    assert list(answer_passages(source, bad)) == [Passage("So.", prompt="Why?")]
    assert bad.skipped == {"field 'm.solution' is empty": 1}
