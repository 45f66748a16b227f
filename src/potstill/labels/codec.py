"""How a dense or a top-k label becomes a record of a fixed number of bytes, and back.

Shapes: P scored positions, K kept tokens, V vocabulary, R bytes of a record.

Token ids are exact: uint16 where they fit, else uint32. Log-probabilities are float16, the tail's mass too, as its
logarithm: each is off by at most 2^-11 of itself (0.004 nat at a probability of e^-16), whether it stands for a large
mass or a tiny one. Reading shifts all outcomes of a position by one constant so that they sum to one again, in
float32. A log-probability below float16's range (-65504) becomes -inf; its probability is 0 in float32 anyway.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.core.errors import BugError
from potstill.labels.kinds import DenseLabels, SoftLabels, TopKLabels
from potstill.labels.settings import Dense, TopK

__all__ = ["Codec", "Records", "codec_of"]

Records = NDArray[np.uint8]


class Codec(Protocol):
    """Labels to records [P, R] and back."""

    @property
    def record_bytes(self) -> int:
        """R."""
        ...

    def encode(self, labels: SoftLabels) -> Records: ...

    def decode(self, records_PR: Records) -> SoftLabels:
        """The labels; ``records_PR`` is this call's own and may be used up."""
        ...


def codec_of(kind: TopK | Dense, vocabulary: int) -> Codec:
    """The codec for a kind of labels over ``vocabulary`` tokens."""
    if isinstance(kind, Dense):
        return _DenseCodec(vocabulary)
    return _TopKCodec(kind.k, np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4"))


@dataclass(frozen=True)
class _TopKCodec:
    """A record: K ids, K log-probabilities, the tail's log-mass."""

    num_kept: int
    id_dtype: np.dtype[Any]

    @property
    def record_bytes(self) -> int:
        return self.num_kept * (self.id_dtype.itemsize + 2) + 2

    def encode(self, labels: SoftLabels) -> Records:
        if not isinstance(labels, TopKLabels) or labels.ids_PK.shape[1] != self.num_kept:
            raise BugError(f"a top-{self.num_kept} store was given {type(labels).__name__} of another shape")
        logprobs_PO = torch.cat([labels.logprobs_PK, labels.tail_mass_P.log().unsqueeze(-1)], dim=-1)
        parts = (labels.ids_PK.cpu().numpy().astype(self.id_dtype), _float16(logprobs_PO))
        return np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in parts], axis=1)

    def decode(self, records_PR: Records) -> TopKLabels:
        id_bytes = self.num_kept * self.id_dtype.itemsize
        ids_PK = torch.from_numpy(records_PR[:, :id_bytes].view(self.id_dtype).astype(np.int64))
        logprobs_PO = torch.from_numpy(records_PR[:, id_bytes:].view("<f2").astype(np.float32)).log_softmax(-1)
        return TopKLabels(ids_PK, logprobs_PO[:, :-1], logprobs_PO[:, -1].exp())


@dataclass(frozen=True)
class _DenseCodec:
    """A record: V log-probabilities."""

    vocabulary: int

    @property
    def record_bytes(self) -> int:
        return self.vocabulary * 2

    def encode(self, labels: SoftLabels) -> Records:
        if not isinstance(labels, DenseLabels) or labels.logprobs_PV.shape[1] != self.vocabulary:
            raise BugError(f"a dense store of {self.vocabulary} tokens was given {type(labels).__name__}")
        return _float16(labels.logprobs_PV).view(np.uint8)

    def decode(self, records_PR: Records) -> DenseLabels:
        return DenseLabels(torch.from_numpy(records_PR.view("<f2").astype(np.float32)).log_softmax(-1))


def _float16(logprobs: Tensor) -> NDArray[np.float16]:
    return np.ascontiguousarray(logprobs.to(device="cpu", dtype=torch.float16).numpy().astype("<f2"))
