"""What must not matter to a step: how its batch is split, how wide its rows are padded, in which order they stand."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from potstill.core.trace import Trace
from potstill.data.sequences import PackedSequences
from potstill.distill import chunks
from potstill.distill.objective import Objective
from potstill.distill.settings import CrossEntropy, ForwardKl, ReverseKl
from potstill.labels.kinds import DenseLabels
from potstill.labels.settings import Dense
from potstill.labels.store import LabelStore, LabelWriter
from potstill.train.loop import Training, TrainingText, _Fit
from potstill.train.settings import TrainingSettings

NUM_ROWS, VOCABULARY = 9, 64
BOUND = {"teacher_fingerprint": "teacher", "tokenizer_fingerprint": "tokenizer"}


@pytest.fixture
def text() -> PackedSequences:
    """Rows of several lengths and prompts; one has nothing to score."""
    generator = np.random.default_rng(3)
    lengths_N = np.array([12, 5, 9, 1, 12, 7, 3, 11, 8], dtype=np.int32)
    prompts_N = np.array([1, 1, 4, 1, 10, 1, 1, 2, 6], dtype=np.int32)
    tokens_NT = generator.integers(1, VOCABULARY, (NUM_ROWS, 12)).astype(np.uint16)
    tokens_NT[np.arange(12) >= lengths_N[:, None]] = 0
    return PackedSequences(tokens_NT, lengths_N, prompts_N)


@pytest.fixture
def labels_in(text, tmp_path):
    logits_PV = torch.randn(text.num_scored, VOCABULARY, generator=torch.Generator().manual_seed(5))
    writer = LabelWriter(tmp_path, Dense(), vocabulary=VOCABULARY, sequences=text, **BOUND)
    writer.write(range(NUM_ROWS), [DenseLabels(logits_PV.log_softmax(-1))])
    writer.finish()
    return tmp_path


@pytest.fixture
def step(make_model, labels_in, text):
    """Makes one step's loss and gradients for rows in some order, micro-batches of some size, some more padding."""

    def make(rows_B, *, micro=None, padding=0):
        wider = PackedSequences(np.pad(text.tokens_NT, ((0, 0), (0, padding))), text.lengths_N, text.prompts_N)
        side = TrainingText(wider, LabelStore.open(labels_in, sequences=wider, **BOUND))
        model = make_model()
        training = Training(
            who="student",
            model=model,
            text=side,
            validation=side,
            objective=Objective([ForwardKl(), ReverseKl(weight=0.3), CrossEntropy(weight=0.5)]),
            settings=TrainingSettings(batch_sentences=NUM_ROWS, micro_batch_sentences=micro),
            seed=0,
            precision="float32",
        )
        loss, num_positions = _Fit(training, Trace())._accumulate_gradients(np.asarray(rows_B))
        return loss, num_positions, [parameter.grad for parameter in model.parameters()]

    return make


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(NUM_ROWS)), micro=st.integers(1, NUM_ROWS), padding=st.integers(0, 9))
def test_split_padding_and_order_change_no_gradient(step, text, order, micro, padding):
    expected_loss, expected_positions, expected = step(range(NUM_ROWS))
    loss, positions, gradients = step(order, micro=micro, padding=padding)
    assert positions == expected_positions == text.num_scored
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for left, right in zip(gradients, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)


def test_chunks_change_no_gradient(step, monkeypatch):
    """The head and the losses on 64 positions at most, of rows repeated until there are more."""
    rows = list(range(NUM_ROWS)) * 4
    expected_loss, positions, expected = step(rows)
    assert positions > 64
    monkeypatch.setattr(chunks, "_LOGITS_AT_ONCE", 1)
    loss, _, gradients = step(rows)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for left, right in zip(gradients, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)
