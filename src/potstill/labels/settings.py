"""Which kind of soft labels to keep, as a recipe says it; free of torch, so that a recipe is checked at once."""

from typing import Annotated, Literal

from pydantic import Field

from potstill.core.settings import Settings

__all__ = ["Dense", "LabelKind", "TopK"]


class TopK(Settings):
    """The ``k`` likeliest tokens at every scored position, and the mass of all others in one bucket."""

    kind: Literal["top_k"] = "top_k"
    k: int = Field(default=32, ge=1)


class Dense(Settings):
    """The whole distribution: exact, and 2 bytes per vocabulary entry at every scored position."""

    kind: Literal["dense"] = "dense"


LabelKind = Annotated[TopK | Dense, Field(discriminator="kind")]
