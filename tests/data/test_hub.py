from pathlib import Path

import pytest

from potstill.core.errors import RemoteError
from potstill.data.hub import data_builder

pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_a_data_set_of_plain_data_is_streamed(tmp_path: Path):
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "The first."}\n{"text": "The second."}\n', encoding="utf-8")
    rows = data_builder(str(folder), None, None).as_streaming_dataset(split="train")
    assert [row["text"] for row in rows] == ["The first.", "The second."]


def test_a_data_set_of_another_format_is_refused(tmp_path: Path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(RemoteError, match="no format that is read here: csv, json, parquet, text"):
        data_builder(str(folder), None, None)
