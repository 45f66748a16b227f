"""How a model is trained: settings shared by the teacher, the student, its plain twin and the healing after pruning."""

from typing import Annotated, Literal

from pydantic import Field

from potstill.core.settings import Settings

__all__ = ["Precision", "TrainingSettings", "default_learning_rate"]

Precision = Literal["float32", "bfloat16"]
"""What matrix products are computed in; weights, their optimiser state and losses are always float32."""


class TrainingSettings(Settings):
    """One run of the training loop.

    ``learning_rate``: its peak; null = 2e-3 x (2M / parameters)^0.3. ``patience``: stop after so many epochs without a
    lower validation loss; null = never. The weights of the epoch with the lowest validation loss are kept.
    """

    epochs: Annotated[int, Field(ge=1, le=10_000)] = 10
    batch_sentences: Annotated[int, Field(ge=1)] = 32
    micro_batch_sentences: Annotated[int, Field(ge=1)] | None = None
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    warmup_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    final_learning_rate_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0
    patience: Annotated[int, Field(ge=1)] | None = None


def default_learning_rate(parameters: int) -> float:
    """2e-3 x (2M / parameters)^0.3: the peak rates that measured well from 1 M to 110 M parameters."""
    return 2e-3 * (2e6 / parameters) ** 0.3
