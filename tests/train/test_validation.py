"""What held-out text says about a model, by every divergence, and which of them chooses the best epoch."""

import pytest
import torch

from potstill.distill import chunks
from potstill.distill.objective import Objective, divergence
from potstill.distill.settings import CrossEntropy, ForwardKl, JensenShannon, ReverseKl, TotalVariation
from potstill.labels.settings import Dense, TopK
from potstill.labels.store import LabelStore, LabelWriter
from potstill.model.anatomy import hidden_states, logits_of
from potstill.teacher.asking import labels_of
from potstill.train.validation import measured_as, validate, validated_quantity

BOUND = {"teacher_fingerprint": "teacher", "tokenizer_fingerprint": "tokenizer"}
LOSSES = (ReverseKl(), JensenShannon(), TotalVariation())


@pytest.fixture(name="logits_PV")
def make_logits(make_model, held_out_text):
    """A model's logits at all scored positions, in one piece."""
    tokens, scored = (torch.from_numpy(part) for part in held_out_text.rows(range(len(held_out_text))))
    model = make_model(seed=1)
    with torch.inference_mode():
        return logits_of(model, hidden_states(model, tokens)[scored])


@pytest.fixture
def labels_in(tmp_path, held_out_text):
    def written(kind, teacher_PV):
        writer = LabelWriter(tmp_path, kind, vocabulary=64, sequences=held_out_text, **BOUND)
        writer.write(range(len(held_out_text)), [labels_of(teacher_PV, kind)])
        writer.finish()
        return LabelStore.open(tmp_path, sequences=held_out_text, **BOUND)

    return written


@pytest.mark.parametrize("kind", [Dense(), TopK(k=8)], ids=["dense", "top_k"])
@pytest.mark.parametrize("logits_at_once", [1, 1 << 24])
def test_each_divergence_is_the_mean_over_all_scored_positions(
    make_model, held_out_text, labels_in, logits_PV, kind, logits_at_once, monkeypatch
):
    """In chunks as in one piece."""
    monkeypatch.setattr(chunks, "_LOGITS_AT_ONCE", logits_at_once)
    teacher_PV = torch.randn(logits_PV.shape, generator=torch.Generator().manual_seed(1))
    store = labels_in(kind, teacher_PV)
    measured = validate(make_model(seed=1), held_out_text, store, divergences=LOSSES, precision="float32")
    soft = store.read(range(len(held_out_text)))
    for loss in (ForwardKl(), *LOSSES):
        expected = divergence(loss, logits_PV, soft).double().mean()
        assert measured[measured_as(loss.kind)] == pytest.approx(float(expected), rel=1e-5)
    agreement = (logits_PV.argmax(-1) == teacher_PV.argmax(-1)).double().mean()
    assert measured["validation_agreement"] == pytest.approx(float(agreement))


def test_without_labels_only_the_true_tokens_are_asked(make_model, held_out_text):
    measured = validate(make_model(), held_out_text, None, divergences=LOSSES, precision="float32")
    assert set(measured) == {"validation_cross_entropy_nats", "validation_accuracy", "validation_perplexity"}


def test_the_model_against_itself_is_at_no_distance(make_model, held_out_text, labels_in, logits_PV):
    measured = validate(
        make_model(seed=1), held_out_text, labels_in(Dense(), logits_PV), divergences=LOSSES, precision="float32"
    )
    assert measured["validation_agreement"] == 1.0
    assert measured["validation_kl_nats"] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(
    ("losses", "quantity", "key"),
    [
        ([CrossEntropy()], "cross_entropy", "validation_cross_entropy_nats"),
        ([ForwardKl()], "forward_kl", "validation_kl_nats"),
        ([ForwardKl(), CrossEntropy()], "forward_kl", "validation_kl_nats"),
        ([JensenShannon(), CrossEntropy()], "jensen_shannon", "validation_jensen_shannon_nats"),
        ([TotalVariation()], "total_variation", "validation_total_variation"),
        ([ReverseKl(), TotalVariation()], "forward_kl", "validation_kl_nats"),
    ],
)
def test_one_divergence_is_validated_by_itself(losses, quantity, key):
    assert validated_quantity(Objective(losses)) == quantity
    assert measured_as(quantity) == key
