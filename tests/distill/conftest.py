"""Labels of every kind, and divergences written out slowly in float64, for the tests of the fast ones."""

import math
from functools import partial
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from potstill.distill import divergences
from potstill.labels.kinds import DenseLabels, SampledLabels, TopKLabels


class Cases:
    """What the tests of the losses share: labels, the divergences by name, and their references."""

    DIVERGENCES: ClassVar = {
        "forward_kl": divergences.forward_kl,
        "reverse_kl": divergences.reverse_kl,
        "jensen_shannon": partial(divergences.jensen_shannon, beta=0.3),
        "skew_kl": partial(divergences.skew_kl, alpha=0.1),
        "skew_reverse_kl": partial(divergences.skew_reverse_kl, alpha=0.1),
        "total_variation": divergences.total_variation,
    }
    BOUNDS: ClassVar = {
        "forward_kl": math.inf,
        "reverse_kl": math.inf,
        "jensen_shannon": -0.3 * math.log(0.3) - 0.7 * math.log(0.7),
        "skew_kl": -math.log(0.1),
        "skew_reverse_kl": -math.log(0.1),
        "total_variation": 1.0,
    }

    @staticmethod
    def logits(seed: int, positions: int, vocabulary: int, spread: float) -> Tensor:
        return torch.randn(positions, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread

    @staticmethod
    def dense(teacher_PV: Tensor) -> DenseLabels:
        return DenseLabels(teacher_PV.double().log_softmax(-1).float())

    @staticmethod
    def top_k(teacher_PV: Tensor, num_kept: int) -> TopKLabels:
        logprobs_PV = teacher_PV.double().log_softmax(-1)
        logprobs_PK, ids_PK = logprobs_PV.topk(num_kept)
        tail_P = logprobs_PV.exp().scatter(-1, ids_PK, 0.0).sum(-1)
        return TopKLabels(ids_PK, logprobs_PK.float(), tail_P.float())

    @staticmethod
    def sampled(teacher_PV: Tensor, draws: int, seed: int) -> SampledLabels:
        """Counts of draws, padded to one length, as a store gives them."""
        probs_PV = teacher_PV.double().softmax(-1)
        drawn_PN = torch.multinomial(probs_PV, draws, replacement=True, generator=torch.Generator().manual_seed(seed))
        ids_PK = torch.zeros_like(drawn_PN)
        weights_PK = torch.zeros(drawn_PN.shape)
        for position, drawn_N in enumerate(drawn_PN):
            ids, counts = drawn_N.unique(return_counts=True)
            ids_PK[position, : len(ids)] = ids
            weights_PK[position, : len(ids)] = counts / draws
        return SampledLabels(ids_PK, weights_PK, torch.special.entr(probs_PV).sum(-1).float())

    @staticmethod
    def value_and_gradient(function, logits_PV: Tensor, *arguments) -> tuple[Tensor, Tensor]:
        leaf_PV = logits_PV.clone().requires_grad_()
        nats_P = function(leaf_PV, *arguments)
        weights_P = torch.linspace(0.5, 2.0, len(nats_P), dtype=nats_P.dtype)
        (gradient_PV,) = torch.autograd.grad((nats_P * weights_P).sum(), leaf_PV)
        return nats_P.detach(), gradient_PV

    @classmethod
    def reference(cls, name: str, logits_PV: Tensor, labels) -> Tensor:
        """Position by position, outcome by outcome, in float64."""
        return torch.stack(
            [
                cls._of_position(name, *cls._outcomes(logits_PV[at], labels.at(slice(at, at + 1))))
                for at in range(len(labels))
            ]
        )

    @staticmethod
    def _outcomes(logits_V: Tensor, label) -> tuple[list[Tensor], list[Tensor]]:
        student_V = logits_V.double().log_softmax(-1)
        if isinstance(label, DenseLabels):
            return list(label.logprobs_PV[0].double()), list(student_V)
        ids = label.ids_PK[0].tolist()
        others = [token for token in range(len(student_V)) if token not in ids]
        teacher = [*label.logprobs_PK[0].double(), label.tail_mass_P[0].double().log()]
        student = [*student_V[ids], student_V[others].logsumexp(-1)]
        return (teacher, student) if others else (teacher[:-1], student[:-1])

    @staticmethod
    def _of_position(name: str, teacher: list[Tensor], student: list[Tensor]) -> Tensor:
        def kl(a: list[Tensor], b: list[Tensor], own_share: float) -> Tensor:
            total = torch.zeros((), dtype=torch.float64)
            for log_a, log_b in zip(a, b, strict=True):
                if log_a.exp() > 0:
                    mixed = (own_share * log_a.exp() + (1 - own_share) * log_b.exp()).log() if own_share else log_b
                    total = total + log_a.exp() * (log_a - mixed)
            return total

        match name:
            case "forward_kl":
                return kl(teacher, student, 0.0)
            case "reverse_kl":
                return kl(student, teacher, 0.0)
            case "jensen_shannon":
                return 0.3 * kl(teacher, student, 0.3) + 0.7 * kl(student, teacher, 0.7)
            case "skew_kl":
                return kl(teacher, student, 0.1)
            case "skew_reverse_kl":
                return kl(student, teacher, 0.1)
            case _:
                return sum(abs(p.exp() - q.exp()) for p, q in zip(teacher, student, strict=True)) / 2


@pytest.fixture(scope="session")
def cases() -> type[Cases]:
    return Cases


@pytest.fixture(params=list(Cases.DIVERGENCES))
def name(request) -> str:
    """Each divergence in turn."""
    return request.param
