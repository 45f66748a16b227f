"""How the teacher's labels are captured, as a recipe says it; free of torch, so that a recipe is checked at once."""

from typing import Literal

from pydantic import Field

from potstill.core.settings import Settings
from potstill.labels.settings import LabelKind

__all__ = ["CaptureSettings"]


class CaptureSettings(Settings):
    """Which labels, of how many sentences of the training text, and how the teacher runs.

    ``precision``: of the teacher's matrix products; log-probabilities are always computed in float32.
    """

    labels: LabelKind
    sentences: int = Field(ge=1)
    batch_sentences: int = Field(default=32, ge=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    seed: int = Field(default=0, ge=0)
