"""A tiny engine, a bigram table whose logits depend on the last token only; and a small run with real models."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from potstill.core.trace import Trace
from potstill.data.sequences import PackedSequences
from potstill.data.tokenizer import TextCoder, train_tokenizer
from potstill.export.gguf import export_gguf
from potstill.model.build import build_llama
from potstill.model.shapes import LlamaShape
from potstill.model.store import save_model
from potstill.quantize.settings import Int8
from potstill.quantize.stage import quantize_model
from potstill.runtime.engine import EngineFacts


class BigramEngine:
    """An ``Engine`` in numpy; ``calls`` remembers the shapes it was asked for."""

    def __init__(self, table_VV: NDArray[np.float32], name: str = "bigram") -> None:
        self.table_VV = table_VV
        self.calls: list[tuple[int, ...]] = []
        self.prompts: list[tuple[int, ...]] = []
        self._facts = EngineFacts(
            name=name, format="table", engine="numpy", dtype="float32", parameters=table_VV.size,
            file_bytes=table_VV.nbytes, threads=1, vocabulary=table_VV.shape[1],
        )  # fmt: skip

    @property
    def facts(self) -> EngineFacts:
        return self._facts

    def logits(self, tokens_BT: NDArray[np.int64]) -> NDArray[np.float32]:
        self.calls.append(tokens_BT.shape)
        return self.table_VV[tokens_BT]

    def generate(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        self.prompts.append(tuple(prompt))
        tokens = list(prompt)
        for _ in range(num_tokens):
            tokens.append(int(self.table_VV[tokens[-1]].argmax()))
        return tokens[len(prompt) :]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


@pytest.fixture
def bigram() -> Callable[..., BigramEngine]:
    """Make an engine from a seed; equal seeds are equal engines."""

    def make(seed: int, vocabulary: int = 12, scale: float = 2.0, name: str = "bigram") -> BigramEngine:
        table = np.random.default_rng(seed).normal(0, scale, (vocabulary, vocabulary))
        return BigramEngine(table.astype(np.float32), name)

    return make


@pytest.fixture
def from_table() -> Callable[[NDArray[np.float32]], BigramEngine]:
    return BigramEngine


@pytest.fixture
def make_sequences() -> Callable[..., PackedSequences]:
    """Random rows of random lengths, with prompts of up to three tokens."""

    def make(seed: int = 0, num: int = 9, tokens: int = 7, vocabulary: int = 12) -> PackedSequences:
        generator = np.random.default_rng(seed)
        lengths_N = generator.integers(2, tokens + 1, num).astype(np.int32)
        prompts_N = generator.integers(1, 4, num).astype(np.int32)
        tokens_NT = generator.integers(0, vocabulary, (num, tokens)).astype(np.uint16)
        tokens_NT[np.arange(tokens) >= lengths_N[:, None]] = 0
        return PackedSequences(tokens_NT, lengths_N, prompts_N)

    return make


WORDS = ("the", "function", "returns", "an", "array", "of", "values", "when", "its", "axis", "is", "given", "and", "no")


@pytest.fixture(scope="session")
def run_inputs(tmp_path_factory) -> dict[str, Path]:
    """The stages of a small run, made by the real parts: text, teacher, student, twin, int8, and GGUF files."""
    root = tmp_path_factory.mktemp("run")
    generator = np.random.default_rng(0)
    sentences = [" ".join(generator.choice(WORDS, 14)) for _ in range(60)]
    tokenizer = train_tokenizer(sentences, 300)
    tokenizer.save_pretrained(root / "data" / "tokenizer")
    coder = TextCoder.of(tokenizer, where="test")
    rows = [[coder.beginning_id, *ids][:24] for ids in coder.encode(sentences)]
    tokens_NT = np.zeros((len(rows), 24), np.uint16)
    for number, row in enumerate(rows):
        tokens_NT[number, : len(row)] = row
    lengths_N = np.array([len(row) for row in rows], np.int32)
    PackedSequences(tokens_NT, lengths_N, np.ones_like(lengths_N)).save(root / "data", "test")
    shapes = {"teacher": 3, "student": 2, "student/twin": 2}
    for seed, (place, blocks) in enumerate(shapes.items()):
        shape = LlamaShape(blocks=blocks, width=64, mlp_width=96, heads=2, kv_heads=2, vocabulary=len(tokenizer))
        model = build_llama(shape, seed=seed, max_position_embeddings=64)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(4 if weight.ndim == 2 else 1)  # a fresh model is too flat to tell tokens apart
        save_model(model, root / "data" / "tokenizer", root / place / "model")
    quiet = Trace()
    quantize_model(Int8(scheme="int8"), root / "student" / "model", root / "quantize" / "student-int8", quiet)
    (root / "export").mkdir()
    export_gguf(root / "student" / "model", root / "export" / "student-float32.gguf", "float32", quiet)
    export_gguf(root / "student" / "model", root / "export" / "student-float16.gguf", "float16", quiet)
    export_gguf(root / "quantize" / "student-int8", root / "export" / "student-int8.gguf", "int8", quiet)
    return {role: root / role for role in ("data", "teacher", "student", "quantize", "export")}
