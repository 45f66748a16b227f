"""Which grid do the weights go on? The schemes a recipe can name; torch-free."""

from typing import Annotated, Literal

from pydantic import Field

from potstill.core.settings import Settings

__all__ = ["Float16", "Int8", "Scheme"]


class Float16(Settings):
    """Every weight as an IEEE half: 2 bytes, an ordinary Hugging Face directory."""

    scheme: Literal["float16"] = "float16"


class Int8(Settings):
    """Symmetric int8 in groups of 32 columns with a float16 scale each: 1.0625 bytes a weight, GGUF's Q8_0."""

    scheme: Literal["int8"] = "int8"
    group: Literal[32] = 32


Scheme = Annotated[Float16 | Int8, Field(discriminator="scheme")]
"""One entry of a recipe's ``quantize`` list."""
