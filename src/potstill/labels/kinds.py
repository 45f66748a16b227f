"""What soft labels are: the teacher's next-token distribution at every scored position.

Shapes: P scored positions (flattened over rows, in row order and then in position order), K kept tokens,
V vocabulary.

Three kinds under one type, ``SoftLabels``. Each can be cut to some of its positions (``at``) and moved to a device
(``to``), so a loss or a store never asks which kind it has; only the divergences do.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["DenseLabels", "Draws", "SampledLabels", "SoftLabels", "TopKLabels"]


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

    Draws from another distribution carry importance weights. Those of a position sum to one only on average.

    ``entropies_P`` is the teacher's entropy as the store knows it. A store may keep one sum per sequence and spread it
    evenly over the sequence's positions, so only its sum over all positions of a sequence is to be relied on, and so
    is the value, not the gradient, of a forward KL.

    Shapes: ids_PK int64, distinct within a position, padded with 0; weights_PK float32, 0 where padded; entropies_P
    float32, nats; likeliest_P int64, the teacher's likeliest token, None where nobody kept it.
    """

    ids_PK: Tensor
    weights_PK: Tensor
    entropies_P: Tensor
    likeliest_P: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids_PK)

    def at(self, positions: slice | Tensor) -> "SampledLabels":
        likeliest_P = None if self.likeliest_P is None else self.likeliest_P[positions]
        return SampledLabels(
            self.ids_PK[positions], self.weights_PK[positions], self.entropies_P[positions], likeliest_P
        )

    def to(self, device: torch.device | str) -> "SampledLabels":
        likeliest_P = None if self.likeliest_P is None else self.likeliest_P.to(device)
        return SampledLabels(
            self.ids_PK.to(device), self.weights_PK.to(device), self.entropies_P.to(device), likeliest_P
        )


@dataclass(frozen=True)
class Draws:
    """Sampled labels as they are drawn, before their order is lost.

    Shapes: draws_PN int64, N token ids in ascending order; entropies_P float32, the teacher's entropy in nats;
    true_logprobs_P float32, nats, what the teacher gives to the token that really follows; likeliest_P int64;
    weight_levels_PN int64, of draws at another temperature than 1 the levels of their importance weights
    (``labels.weights``), equal for equal draws.
    """

    draws_PN: Tensor
    entropies_P: Tensor
    true_logprobs_P: Tensor
    likeliest_P: Tensor
    weight_levels_PN: Tensor | None = None

    def __len__(self) -> int:
        return len(self.draws_PN)

    def at(self, positions: slice | Tensor) -> "Draws":
        return self._each(lambda tensor: tensor[positions])

    def to(self, device: torch.device | str) -> "Draws":
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Draws":
        return replace(self, **{name: change(tensor) for name, tensor in vars(self).items() if tensor is not None})


SoftLabels = DenseLabels | TopKLabels | SampledLabels
