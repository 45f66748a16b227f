"""A text, a tiny model and its labels, small enough to train in a second."""

import numpy as np
import pytest
import torch

from potstill.core import interrupt
from potstill.data.sequences import PackedSequences
from potstill.model.build import build_llama
from potstill.model.shapes import LlamaShape

VOCABULARY = 64
SHAPE = LlamaShape(blocks=2, width=32, mlp_width=64, heads=1, kv_heads=1, vocabulary=VOCABULARY)


def make_sequences(num_sequences: int, *, seed: int, tokens_per_sequence: int = 12) -> PackedSequences:
    """Rows that count upwards from a random start, so that there is something to learn; lengths differ."""
    generator = np.random.default_rng(seed)
    lengths_N = generator.integers(4, tokens_per_sequence + 1, num_sequences).astype(np.int32)
    starts_N = generator.integers(1, VOCABULARY, num_sequences)
    counting_NT = (starts_N[:, None] + np.arange(tokens_per_sequence)) % (VOCABULARY - 1) + 1
    inside_NT = np.arange(tokens_per_sequence) < lengths_N[:, None]
    tokens_NT = np.where(inside_NT, counting_NT, 0).astype(np.uint16)
    return PackedSequences(tokens_NT, lengths_N, np.ones(num_sequences, dtype=np.int32))


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny products gain nothing from threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_model():
    return lambda seed=0: build_llama(SHAPE, seed=seed)


@pytest.fixture
def train_text():
    return make_sequences(70, seed=1)


@pytest.fixture
def held_out_text():
    return make_sequences(20, seed=2)


class _StopAfter:
    """A listener that asks for a stop, as a signal would, once so many steps were told."""

    def __init__(self, num_steps: int) -> None:
        self.left = num_steps

    def __call__(self, event) -> None:
        if event["name"] == "step_loss_nats":
            self.left -= 1
            if self.left == 0:
                interrupt._received.append(2)


@pytest.fixture
def stop_after():
    """Makes a listener that stops the loop after a number of steps; no request is left behind."""
    yield _StopAfter
    interrupt._received.clear()
