"""What the code of a label loses: nothing of the ids, 2^-11 of a log-probability, nothing of the sum."""

import numpy as np
import pytest
import torch

from potstill.core.errors import BugError
from potstill.labels.codec import codec_of
from potstill.labels.kinds import TopKLabels
from potstill.labels.settings import Dense, TopK


def assert_near(decoded, exact):
    """Float16's own rounding, and the shift that makes the sum one again, which is no larger."""
    finite = exact > -torch.inf
    assert torch.equal(decoded > -torch.inf, finite)
    assert (decoded[finite] - exact[finite]).abs().le(2**-11 * exact[finite].abs() + 2e-3).all()


@pytest.mark.parametrize("k", [1, 5, 40])
def test_top_k_comes_back_within_its_rounding(make_labels, k):
    labels = make_labels(TopK(k=k), 50)
    codec = codec_of(TopK(k=k), 40)
    decoded = codec.decode(codec.encode(labels))
    assert codec.record_bytes == 4 * k + 2
    assert torch.equal(decoded.ids_PK, labels.ids_PK)
    assert_near(decoded.logprobs_PK, labels.logprobs_PK)
    assert_near(decoded.tail_mass_P.log(), labels.tail_mass_P.log())


@pytest.mark.parametrize("k", [1, 5, 40])
def test_kept_and_tail_sum_to_one(make_labels, k):
    """So the divergence over them is a true KL, never negative."""
    codec = codec_of(TopK(k=k), 40)
    decoded = codec.decode(codec.encode(make_labels(TopK(k=k), 50)))
    sums_P = decoded.logprobs_PK.double().exp().sum(-1) + decoded.tail_mass_P.double()
    torch.testing.assert_close(sums_P, torch.ones(50, dtype=torch.float64), atol=1e-6, rtol=0)


def test_an_empty_tail_stays_empty(make_labels):
    """With every token kept, or none left with any mass, the tail is exactly 0."""
    for k, positions in ((40, slice(None)), (5, slice(0, 2))):
        codec = codec_of(TopK(k=k), 40)
        decoded = codec.decode(codec.encode(make_labels(TopK(k=k), 50)))
        assert (decoded.tail_mass_P[positions] == 0).all()


def test_ids_beyond_16_bits_come_back_whole():
    """A vocabulary of 65,536 fits 16 bits; one more token takes 32."""
    ids_PK = torch.tensor([[0, 65_535, 65_536, 150_000]])
    labels = TopKLabels(ids_PK, torch.full((1, 4), 0.2).log(), torch.tensor([0.2]))
    assert codec_of(TopK(k=4), 65_536).record_bytes == 4 * 4 + 2
    codec = codec_of(TopK(k=4), 65_537)
    assert codec.record_bytes == 4 * 6 + 2
    assert torch.equal(codec.decode(codec.encode(labels)).ids_PK, ids_PK)


def test_dense_comes_back_within_its_rounding_and_sums_to_one(make_labels):
    labels = make_labels(Dense(), 30)
    codec = codec_of(Dense(), 40)
    decoded = codec.decode(codec.encode(labels))
    assert codec.record_bytes == 80
    assert_near(decoded.logprobs_PV, labels.logprobs_PV)
    torch.testing.assert_close(decoded.logprobs_PV.double().exp().sum(-1), torch.ones(30).double(), atol=1e-6, rtol=0)


def test_what_the_rounding_costs_in_nats(make_labels):
    """KL from the exact label to the stored one is millionths of a nat: far below anything a student can reach."""
    labels = make_labels(Dense(), 500)
    codec = codec_of(Dense(), 40)
    stored = codec.decode(codec.encode(labels))
    exact_PV, stored_PV = labels.logprobs_PV.double(), stored.logprobs_PV.double()
    nats_P = torch.where(exact_PV > -torch.inf, exact_PV.exp() * (exact_PV - stored_PV), 0.0).sum(-1)
    assert nats_P.mean() < 1e-6
    assert nats_P.max() < 1e-5


def test_an_outcome_below_float16_is_impossible_not_wrong():
    """A log-probability of -70,000 overflows float16; its probability is 0 in float32 as well."""
    labels = TopKLabels(torch.tensor([[1, 2]]), torch.tensor([[0.0, -70_000.0]]), torch.zeros(1))
    codec = codec_of(TopK(k=2), 4)
    decoded = codec.decode(codec.encode(labels))
    assert decoded.logprobs_PK.tolist() == [[0.0, -torch.inf]]


def test_no_positions_give_no_records(make_labels):
    codec = codec_of(TopK(k=3), 40)
    records_PR = codec.encode(make_labels(TopK(k=3), 0))
    assert records_PR.shape == (0, 14)
    assert records_PR.dtype == np.uint8
    assert len(codec.decode(records_PR)) == 0


def test_labels_of_another_shape_are_refused(make_labels):
    with pytest.raises(BugError):
        codec_of(TopK(k=3), 40).encode(make_labels(TopK(k=4), 2))
    with pytest.raises(BugError):
        codec_of(Dense(), 39).encode(make_labels(Dense(), 2))
    with pytest.raises(BugError):
        codec_of(TopK(k=3), 40).encode(make_labels(Dense(), 2))
