"""Into which files do the models go? What a recipe's ``export`` list can name; torch-free."""

from typing import Literal

from potstill.core.settings import Settings

__all__ = ["DTYPES", "Dtype", "Export", "GgufExport"]

Dtype = Literal["float32", "float16", "bfloat16", "int8", "int4", "q3_k", "q2_k"]
DTYPES: tuple[Dtype, ...] = ("float32", "float16", "bfloat16", "int8", "int4", "q3_k", "q2_k")
"""What most weights of a file are stored in: the first word of a variant's label."""


class GgufExport(Settings):
    """One GGUF file per model and dtype, for llama.cpp and everything built on it."""

    format: Literal["gguf"] = "gguf"


Export = GgufExport
"""One entry of a recipe's ``export`` list; becomes a tagged union with the second format."""
