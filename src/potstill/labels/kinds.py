"""What soft labels are: the teacher's next-token distribution at every scored position.

Shapes: P scored positions (flattened over rows, in row order and then in position order), K kept tokens,
V vocabulary.

Three kinds under one type, ``SoftLabels``. Each can be cut to some of its positions (``at``) and moved to a device
(``to``), so a loss or a store never asks which kind it has; only the divergences do.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["DenseLabels", "SampledLabels", "SoftLabels", "TopKLabels"]


@dataclass(frozen=True)
class DenseLabels:
    """The whole distribution. Shapes: logprobs_PV float32, nats."""

    logprobs_PV: Tensor

    def __len__(self) -> int:
        return len(self.logprobs_PV)

    def at(self, positions: slice | Tensor) -> "DenseLabels":
        return DenseLabels(self.logprobs_PV[positions])

    def to(self, device: torch.device | str) -> "DenseLabels":
        return DenseLabels(self.logprobs_PV.to(device))


@dataclass(frozen=True)
class TopKLabels:
    """The K likeliest tokens, likeliest first, and the mass of all others in one bucket.

    Shapes: ids_PK int64; logprobs_PK float32, nats; tail_mass_P float32 in [0, 1].
    """

    ids_PK: Tensor
    logprobs_PK: Tensor
    tail_mass_P: Tensor

    def __len__(self) -> int:
        return len(self.ids_PK)

    def at(self, positions: slice | Tensor) -> "TopKLabels":
        return TopKLabels(self.ids_PK[positions], self.logprobs_PK[positions], self.tail_mass_P[positions])

    def to(self, device: torch.device | str) -> "TopKLabels":
        return TopKLabels(self.ids_PK.to(device), self.logprobs_PK.to(device), self.tail_mass_P.to(device))


@dataclass(frozen=True)
class SampledLabels:
    """Draws from the distribution as weights that sum to one: an unbiased estimate of it.

    ``entropies_P`` is the teacher's entropy as the store knows it. A store may keep one sum per sequence and spread it
    evenly over the sequence's positions, so only its sum over all positions of a sequence is to be relied on, and so
    is the value, not the gradient, of a forward KL.

    Shapes: ids_PK int64, distinct within a position, padded with 0; weights_PK float32, 0 where padded; entropies_P
    float32, nats.
    """

    ids_PK: Tensor
    weights_PK: Tensor
    entropies_P: Tensor

    def __len__(self) -> int:
        return len(self.ids_PK)

    def at(self, positions: slice | Tensor) -> "SampledLabels":
        return SampledLabels(self.ids_PK[positions], self.weights_PK[positions], self.entropies_P[positions])

    def to(self, device: torch.device | str) -> "SampledLabels":
        return SampledLabels(self.ids_PK.to(device), self.weights_PK.to(device), self.entropies_P.to(device))


SoftLabels = DenseLabels | TopKLabels | SampledLabels
