"""Which kind of soft labels to keep, as a recipe says it; free of torch, so that a recipe is checked at once."""

from typing import Annotated, Literal

from pydantic import Field

from potstill.core.settings import Settings

__all__ = ["Dense", "LabelKind", "Sampled", "TopK"]


class TopK(Settings):
    """The ``k`` likeliest tokens at every scored position, and the mass of all others in one bucket."""

    kind: Literal["top_k"] = "top_k"
    k: int = Field(default=32, ge=1)


class Sampled(Settings):
    """So many draws from the teacher's distribution at every scored position: an unbiased estimate of all of it.

    ``sampling``: "systematic" draws lie evenly spaced on the distribution, so a token of probability p comes within one
    of draws x p times; "multinomial" draws are independent. Both are unbiased; systematic ones vary less.
    ``temperature``: of what is drawn from, p^(1/temperature) made to sum to one. Other than 1, every distinct draw also
    keeps its importance weight, some 5 bits, and the estimate stays unbiased.
    """

    kind: Literal["sampled"] = "sampled"
    draws: int = Field(default=32, ge=1, le=255)
    sampling: Literal["systematic", "multinomial"] = "systematic"
    temperature: float = Field(default=1.0, gt=0)

    @property
    def weighted(self) -> bool:
        """Whether draws carry importance weights."""
        return self.temperature != 1.0


class Dense(Settings):
    """The whole distribution: exact, and 2 bytes per vocabulary entry at every scored position."""

    kind: Literal["dense"] = "dense"


LabelKind = Annotated[TopK | Sampled | Dense, Field(discriminator="kind")]
