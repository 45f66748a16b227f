"""How a model is pruned, as a recipe says it; free of torch, so that a recipe is checked at once."""

from typing import Annotated, Literal

from pydantic import Field

from potstill.core.settings import Count, Settings

__all__ = ["StructuredPruning"]


class StructuredPruning(Settings):
    """Remove whole blocks and MLP channels until ``keep_parameters`` of all parameters are left; then heal by training.

    ``calibration_sentences``: how many training rows decide what matters. ``epochs``, ``learning_rate`` and
    ``batch_sentences`` are the healing's; a null rate leaves it to the training loop, epochs 0 leaves the wound open.
    """

    kind: Literal["structured"]
    keep_parameters: Annotated[float, Field(gt=0, lt=1)]
    calibration_sentences: Annotated[Count, Field(gt=0)] = 256
    epochs: Annotated[int, Field(ge=0, le=10_000)] = 3
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    batch_sentences: Annotated[int, Field(ge=1)] = 32
