"""Into which files do the models go? What a recipe's ``export`` list can name; torch-free."""

from typing import Literal

from potstill.core.settings import Settings

__all__ = ["DTYPES", "Dtype", "Export", "GgufExport"]

Dtype = Literal["float32", "float16", "int8"]
DTYPES: tuple[Dtype, ...] = ("float32", "float16", "int8")


class GgufExport(Settings):
    """One GGUF file per model and dtype, for llama.cpp and everything built on it."""

    format: Literal["gguf"] = "gguf"


Export = GgufExport
"""One entry of a recipe's ``export`` list; becomes a tagged union with the second format."""
