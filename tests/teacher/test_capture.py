"""Capturing: the labels are the teacher's own distribution, at the positions that count, whatever interrupts it."""

import os
import signal

import numpy as np
import pytest
import torch

from potstill.core import interrupt
from potstill.core.durable import read_json
from potstill.core.errors import InputError, Interrupted, RecipeError
from potstill.core.trace import Trace, read_trace
from potstill.data.sequences import PackedSequences
from potstill.distill.divergences import forward_kl
from potstill.labels.kinds import TopKLabels
from potstill.labels.settings import Dense, Sampled, TopK
from potstill.labels.store import LabelStore
from potstill.labels.weights import weight_of_level
from potstill.model.store import load_model, model_fingerprint, tokenizer_fingerprint
from potstill.teacher.asking import draws_of, labels_of, uniforms_of
from potstill.teacher.capture import capture_labels
from potstill.teacher.settings import CaptureSettings

SETTINGS = CaptureSettings(labels=TopK(k=8), sentences=600, batch_sentences=50)


def contents(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def open_split(made, out, split, sentences=600):
    sequences = PackedSequences.load(made["data"], split).first(sentences)
    store = LabelStore.open(
        out / split,
        sequences=sequences,
        teacher_fingerprint=model_fingerprint(made["teacher"] / "model"),
        tokenizer_fingerprint=tokenizer_fingerprint(made["data"] / "tokenizer"),
    )
    return sequences, store


def teacher_logits(made, sequences, rows_B):
    """The obvious way: the whole model on whole rows, one by one, then the scored positions."""
    model = load_model(made["teacher"] / "model")
    parts = []
    for row in rows_B:
        tokens_1T, scored_1T = sequences.rows([row])
        with torch.no_grad():
            parts.append(model(torch.from_numpy(tokens_1T)).logits[torch.from_numpy(scored_1T)])
    return torch.cat(parts)


@pytest.mark.parametrize("vocabulary", [4, 50])
def test_labels_of_logits_equal_the_reference_in_float64(vocabulary):
    logits_PV = torch.randn(6, vocabulary, generator=torch.Generator().manual_seed(0)) * 4
    exact_PV = logits_PV.double().log_softmax(-1)
    torch.testing.assert_close(labels_of(logits_PV, Dense()).logprobs_PV.double(), exact_PV, rtol=1e-6, atol=1e-6)
    labels = labels_of(logits_PV, TopK(k=3))
    sorted_PV, order_PV = exact_PV.sort(-1, descending=True)
    assert torch.equal(labels.ids_PK, order_PV[:, :3])
    torch.testing.assert_close(labels.logprobs_PK.double(), sorted_PV[:, :3], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(labels.tail_mass_P.double(), sorted_PV[:, 3:].exp().sum(-1), rtol=1e-5, atol=0)


def test_keeping_every_token_leaves_an_empty_tail():
    labels = labels_of(torch.randn(5, 7), TopK(k=7))
    assert (labels.tail_mass_P == 0).all()


def test_a_tiny_tail_keeps_its_digits():
    labels = labels_of(torch.tensor([[40.0, 0.0, 0.0]]), TopK(k=1))
    assert labels.tail_mass_P.item() == pytest.approx(2 * np.exp(-40.0), rel=1e-5)


def test_a_teacher_agrees_with_its_own_labels():
    """Forward KL from the labels to the logits they were taken from is 0."""
    logits_PV = torch.randn(20, 30, generator=torch.Generator().manual_seed(0)) * 3
    for kind in (TopK(k=1), TopK(k=5), TopK(k=30), Dense()):
        torch.testing.assert_close(
            forward_kl(logits_PV, labels_of(logits_PV, kind)), torch.zeros(20), atol=1e-6, rtol=0
        )


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_a_broken_teacher_is_refused(wrong):
    with pytest.raises(InputError, match="NaN or infinite"):
        labels_of(torch.tensor([[0.0, wrong]]), TopK(k=1))


def test_more_tokens_than_there_are_cannot_be_kept():
    with pytest.raises(RecipeError, match="9 tokens"):
        labels_of(torch.zeros(1, 8), TopK(k=9))


@pytest.mark.parametrize("kind", [TopK(k=8), Dense()], ids=str)
def test_stored_labels_are_the_teachers_distribution(tmp_path, made, kind):
    """Read back in any order, against the whole model on single rows; both splits, the student's rows only."""
    settings = SETTINGS.model_copy(update={"labels": kind, "sentences": 300})
    capture_labels(settings, made, tmp_path, Trace())
    for split, rows_B in (("train", [299, 0, 7, 256]), ("validation", [3, 39])):
        sequences, store = open_split(made, tmp_path, split, 300)
        exact_PV = teacher_logits(made, sequences, rows_B).log_softmax(-1)
        labels = store.read(rows_B)
        assert len(labels) == len(exact_PV)
        if isinstance(labels, TopKLabels):
            exact_PK, stored_PK = exact_PV.gather(-1, labels.ids_PK), labels.logprobs_PK
            torch.testing.assert_close(exact_PK[:, 0], exact_PV.amax(-1), rtol=1e-5, atol=1e-5)
        else:
            exact_PK, stored_PK = exact_PV, labels.logprobs_PV
        torch.testing.assert_close(stored_PK, exact_PK, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("sampling", ["systematic", "multinomial"])
def test_draws_are_an_unbiased_estimate(sampling):
    """The mean count over many uniforms is N p; systematic counts are N p rounded up or down, every time."""
    kind = Sampled(draws=10, sampling=sampling)
    logits_1V = torch.randn(1, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    probabilities_V = logits_1V.softmax(-1)[0]
    repeats = 20_000
    uniforms = torch.rand(repeats, 10 if sampling == "multinomial" else 1, dtype=torch.float64)
    draws = draws_of(logits_1V.expand(repeats, 12), kind, uniforms, torch.zeros(repeats, dtype=torch.int64))
    counts_PV = torch.zeros(repeats, 12).scatter_add_(1, draws.draws_PN, torch.ones(repeats, 10))
    assert (draws.draws_PN.diff(dim=1) >= 0).all()
    torch.testing.assert_close(counts_PV.mean(0).double(), 10 * probabilities_V, atol=0.05, rtol=0)
    if sampling == "systematic":
        assert ((counts_PV - 10 * probabilities_V).abs() < 1 + 1e-6).all()
    exact_nats = torch.special.entr(probabilities_V).sum().float()
    torch.testing.assert_close(draws.entropies_P[0], exact_nats)
    torch.testing.assert_close(draws.true_logprobs_P[0], probabilities_V[0].log().float())
    assert (draws.likeliest_P == probabilities_V.argmax()).all()


@pytest.mark.parametrize("temperature", [0.5, 0.8, 1.25, 3.0])
@pytest.mark.parametrize("sampling", ["systematic", "multinomial"])
def test_draws_at_another_temperature_are_an_unbiased_estimate_too(sampling, temperature):
    """Each token's mean weight over many uniforms is its probability, within four standard errors of N = 1.

    The weights are those that a store keeps, rounded to levels at random.
    """
    kind = Sampled(draws=8, sampling=sampling, temperature=temperature)
    logits_1V = torch.randn(1, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    probabilities_V = logits_1V.softmax(-1)[0]
    repeats = 40_000
    generator, num_uniforms = torch.Generator().manual_seed(1), (8 if sampling == "multinomial" else 1) + 1
    uniforms = torch.rand(repeats, num_uniforms, dtype=torch.float64, generator=generator)
    draws = draws_of(logits_1V.expand(repeats, 12), kind, uniforms, torch.zeros(repeats, dtype=torch.int64))
    weights_PN = torch.from_numpy(weight_of_level(draws.weight_levels_PN.numpy().astype(np.uint16))).double() / 8
    estimates_PV = torch.zeros(repeats, 12, dtype=torch.float64).scatter_add_(1, draws.draws_PN, weights_PN)
    drawn_V = (logits_1V / temperature).softmax(-1)[0]
    standard_error_V = probabilities_V / (drawn_V * repeats).sqrt()
    assert ((estimates_PV.mean(0) - probabilities_V).abs() <= 4 * standard_error_V).all()
    assert (draws.weight_levels_PN.diff(dim=1)[draws.draws_PN.diff(dim=1) == 0] == 0).all(), "equal draws weigh alike"
    exact_nats = torch.special.entr(probabilities_V).sum().float()
    torch.testing.assert_close(draws.entropies_P[0], exact_nats)
    torch.testing.assert_close(draws.true_logprobs_P[0], probabilities_V[0].log().float())
    assert (draws.likeliest_P == probabilities_V.argmax()).all()


def test_an_impossible_token_is_never_drawn():
    """Uniforms at both ends of their range, at a distribution whose first and last tokens have no mass."""
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]]).expand(3, 4)
    uniforms = torch.tensor([[0.0], [0.5], [1 - 2**-53]], dtype=torch.float64)
    draws = draws_of(logits, Sampled(draws=4), uniforms, torch.ones(3, dtype=torch.int64))
    assert {*draws.draws_PN.flatten().tolist()} == {1, 2}


def test_random_numbers_belong_to_the_row_and_the_seed(made):
    """Whatever rows are asked for together, a row's numbers are its own; another seed gives others."""
    sequences = PackedSequences.load(made["data"], "train")
    kind = Sampled(draws=3, sampling="multinomial")
    together = uniforms_of(sequences, np.arange(20), kind, seed=1)
    apart = np.concatenate([uniforms_of(sequences, np.array([row]), kind, seed=1) for row in range(20)])
    assert np.array_equal(together, apart)
    assert together.shape == (sequences.first(20).num_scored, 3)
    assert not np.array_equal(together, uniforms_of(sequences, np.arange(20), kind, seed=2))


@pytest.mark.parametrize("temperature", [1.0, 1.5])
@pytest.mark.parametrize("sampling", ["systematic", "multinomial"])
def test_stored_draws_are_those_of_the_teachers_distribution(tmp_path, made, sampling, temperature):
    """Drawn again, the obvious way, from the whole model on single rows: the same counts, entropy, likeliest token."""
    kind = Sampled(draws=20, sampling=sampling, temperature=temperature)
    settings = SETTINGS.model_copy(update={"labels": kind, "sentences": 300, "seed": 5})
    capture_labels(settings, made, tmp_path, Trace())
    for split, rows_B in (("train", [299, 0, 7, 256]), ("validation", [3, 39])):
        sequences, store = open_split(made, tmp_path, split, 300)
        logprobs_PV = teacher_logits(made, sequences, rows_B).double().log_softmax(-1)
        labels = store.read(rows_B)
        uniforms_PU = torch.from_numpy(uniforms_of(sequences, np.array(rows_B), kind, seed=5))
        points_PN = uniforms_PU if sampling == "multinomial" else (uniforms_PU[:, :1] + torch.arange(20)) / 20
        drawn_PV = (logprobs_PV / temperature).softmax(-1)
        expected_PN = torch.searchsorted(drawn_PV.cumsum(-1), points_PN[:, :20].contiguous())
        counts_PV = torch.zeros(len(labels), 300).scatter_add_(1, expected_PN, torch.ones(expected_PN.shape))
        expected_PV = counts_PV / 20 * (logprobs_PV.exp() / drawn_PV)
        shares_PV = torch.zeros(len(labels), 300).scatter_add_(1, labels.ids_PK, labels.weights_PK)
        largest_error = 1e-6 if temperature == 1.0 else np.exp(1 / 8) - 1  # a level up or down
        wrong_PV = (shares_PV - expected_PV).abs() > largest_error * expected_PV + 1e-6
        assert wrong_PV.float().mean() < 0.001
        assert torch.equal(labels.likeliest_P, logprobs_PV.argmax(-1))
        entropy_nats = torch.special.entr(logprobs_PV.exp()).sum()
        assert labels.entropies_P.double().sum().item() == pytest.approx(entropy_nats.item(), rel=1e-4)


def test_labels_do_not_depend_on_the_batches(tmp_path, made):
    """In float32, up to the rounding of a sum: one bit of float16 at most."""
    for size in (7, 600):
        capture_labels(SETTINGS.model_copy(update={"batch_sentences": size}), made, tmp_path / str(size), Trace())
    small, large = (open_split(made, tmp_path / size, "train")[1].read(range(600)) for size in ("7", "600"))
    torch.testing.assert_close(small.logprobs_PK, large.logprobs_PK, rtol=2**-10, atol=2e-3)


def test_bfloat16_is_near_and_bound_to_the_same_teacher(tmp_path, made):
    capture_labels(SETTINGS.model_copy(update={"precision": "bfloat16"}), made, tmp_path / "b", Trace())
    capture_labels(SETTINGS, made, tmp_path / "f", Trace())
    _, rounded = open_split(made, tmp_path / "b", "train")
    _, exact = open_split(made, tmp_path / "f", "train")
    difference_P = rounded.read(range(600)).logprobs_PK[:, 0] - exact.read(range(600)).logprobs_PK[:, 0]
    assert 0 < difference_P.abs().mean() < 0.05


def test_asked_twice_the_bytes_are_the_same(tmp_path, made):
    for name in ("once", "again"):
        capture_labels(SETTINGS, made, tmp_path / name, Trace())
    assert contents(tmp_path / "once") == contents(tmp_path / "again")


@pytest.mark.parametrize("labels", [TopK(k=8), Sampled(draws=6)], ids=str)
@pytest.mark.parametrize("progress_events", [0, 1, 3])
def test_stopped_and_started_again_ends_in_the_same_bytes(tmp_path, made, monkeypatch, progress_events, labels):
    """A signal in the middle of a shard: whole shards are kept, the half one is done again."""
    monkeypatch.setattr("potstill.teacher.capture._SECONDS_BETWEEN_PROGRESS", 0.0)
    settings = SETTINGS.model_copy(update={"labels": labels})
    capture_labels(settings, made, tmp_path / "whole", Trace())
    seen = []

    def stop_after_a_while(event):
        if event["kind"] == "progress":
            seen.append(event)
            if len(seen) == progress_events * 3 + 1:  # once: a second signal ends the process at once
                os.kill(os.getpid(), signal.SIGTERM)

    with interrupt.watching(), pytest.raises(Interrupted):
        capture_labels(settings, made, tmp_path / "killed", Trace(listeners=[stop_after_a_while]))
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").rglob("*.labels")}
    capture_labels(settings, made, tmp_path / "killed", Trace())
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == when for path, when in written.items())


def test_the_trace_tells_what_went_in_and_came_out(tmp_path, made):
    trace = Trace(tmp_path / "trace.jsonl", stage="labels")
    capture_labels(SETTINGS, made, tmp_path / "out", trace)
    events = read_trace(tmp_path / "trace.jsonl")
    by_kind = {kind: [event for event in events if event["kind"] == kind] for kind in ("input", "output", "metric")}
    assert [event["value"]["shape"] for event in by_kind["input"]] == [[600, 12], [40, 12]]
    sequences, store = open_split(made, tmp_path / "out", "train")
    assert by_kind["output"][0]["value"]["shape"] == [sequences.num_scored, 8]
    assert len(by_kind["output"][0]["value"]["example"]) > 1
    metrics = {event["name"]: event["value"] for event in by_kind["metric"]}
    assert metrics["label_bytes_per_token"] == store.facts["bytes_per_token"]
    assert metrics["tokens_per_s"] > 0
    facts = read_json(tmp_path / "out" / "labels.json")
    assert facts == {**store.facts, "splits": facts["splits"]}
    assert set(facts["splits"]) == {"train", "validation"}


@pytest.mark.parametrize("kind", [TopK(k=8), Dense()], ids=str)
def test_the_example_is_a_whole_distribution_in_words(tmp_path, made, kind):
    capture_labels(SETTINGS.model_copy(update={"labels": kind}), made, tmp_path, Trace())
    example = read_json(tmp_path / "example.json")
    probabilities = [entry["probability"] for entry in example["entries"]]
    assert sum(probabilities) + example["tail_mass"] == pytest.approx(1.0, abs=1e-5)
    assert probabilities == sorted(probabilities, reverse=True)
    assert example["entropy_nats"] > 0
    assert example["context"]
    assert example["true_next"]
    assert all(isinstance(entry["token"], str) for entry in example["entries"])
