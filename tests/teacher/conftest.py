"""A data artefact and a teacher of a few thousand parameters, made with the real tokenizer and the real model."""

from pathlib import Path

import numpy as np
import pytest

from potstill.core.durable import write_json
from potstill.data.sequences import PackedSequences
from potstill.data.tokenizer import train_tokenizer
from potstill.model.build import build_llama
from potstill.model.shapes import LlamaShape
from potstill.model.store import save_model

VOCABULARY = 300
TEXT = "The function returns the number of items in the list, or raises an error when the list is empty. "


def small_teacher(vocabulary: int = VOCABULARY, **settings):
    shape = LlamaShape(blocks=2, width=32, mlp_width=64, heads=2, kv_heads=2, vocabulary=vocabulary)
    model = build_llama(shape, seed=1, **settings)
    for weight in model.parameters():
        weight.data.mul_(4.0)
    return model


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> dict[str, Path]:
    """The directories ``data`` and ``teacher``; treat them as read-only."""
    root = tmp_path_factory.mktemp("made")
    tokenizer = train_tokenizer([TEXT], VOCABULARY)
    tokenizer.save_pretrained(root / "data" / "tokenizer")
    vocabulary = len(tokenizer)
    write_json(root / "data" / "data.json", {"vocabulary": vocabulary, "beginning_id": 0, "end_id": 0})
    generator = np.random.default_rng(0)
    for split, num_rows in (("train", 700), ("validation", 40)):
        lengths_N = generator.integers(2, 13, num_rows).astype(np.int32)
        tokens_NT = generator.integers(1, vocabulary, (num_rows, 12)).astype(np.uint16)
        tokens_NT[:, 0] = 0
        tokens_NT[np.arange(12) >= lengths_N[:, None]] = 0
        PackedSequences(tokens_NT, lengths_N, np.ones(num_rows, dtype=np.int32)).save(root / "data", split)
    save_model(small_teacher(vocabulary), root / "data" / "tokenizer", root / "teacher" / "model")
    return {"data": root / "data", "teacher": root / "teacher"}


@pytest.fixture
def make_teacher(tmp_path, made):
    """Another teacher: its settings changed, or the tokenizer of another directory beside it."""

    def make(tokenizer: Path | None = None, **settings) -> dict[str, Path]:
        save_model(small_teacher(**settings), tokenizer, tmp_path / "teacher" / "model")
        return {**made, "teacher": tmp_path / "teacher"}

    return make
