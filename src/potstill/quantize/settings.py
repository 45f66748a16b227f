"""Which grid do the weights go on? The schemes a recipe can name; torch-free."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from potstill.core.settings import Count, Settings

__all__ = [
    "Awq",
    "Bfloat16",
    "Calibrated",
    "Float16",
    "Gptq",
    "Int4",
    "Int8",
    "Int8Channel",
    "KQuant2",
    "KQuant3",
    "Keep",
    "KeepSensitive",
    "Rtn",
    "Scheme",
    "Search",
    "SmoothQuant",
    "calibration_of",
    "keep_sensitive_of",
    "label_of",
    "repeated_labels",
    "text_tokens_of",
]


class Keep(Settings):
    """Matrices that stay on a finer grid than the rest; a bare pattern means float16."""

    tensors: Annotated[str, Field(min_length=1)]
    dtype: Literal["float16", "int8"] = "float16"


class KeepSensitive(Settings):
    """The linears of the blocks that suffer most from rounding stay finer: measured, each rounded by itself.

    What counts is the KL from the exact model's next-token distribution on some of the text.
    """

    linears: Annotated[Count, Field(ge=1)]
    dtype: Literal["float16", "int8"] = "float16"
    calibration_tokens: Annotated[Count, Field(ge=1)] = 2_048


def _keep_sensitive_of(value: Any) -> Any:  # noqa: ANN401 - before validation it may be anything
    return {"linears": value} if isinstance(value, int | str) else value


SensitiveKept = Annotated[KeepSensitive | None, BeforeValidator(_keep_sensitive_of)]


def _keep_of(value: Any) -> Any:  # noqa: ANN401 - before validation it may be anything
    return {"tensors": value} if isinstance(value, str) else value


Kept = tuple[Annotated[Keep, BeforeValidator(_keep_of)], ...]


class Rtn(Settings):
    """Every weight to the nearest code; looks at no text."""

    kind: Literal["rtn"] = "rtn"


class Calibrated(Settings):
    """A method that looks at the inputs of every linear on some of the recipe's text."""

    calibration_tokens: Annotated[Count, Field(ge=1)] = 65_536


class Search(Calibrated):
    """Of many scales for a group the one with the least squared error, columns weighed by their mean squared input.

    On k-quant grids the weights go into llama.cpp's own search, as its importance matrix does.
    """

    kind: Literal["search"] = "search"


class Gptq(Calibrated):
    """Round column by column, and let the columns still to come make up for the error on the text.

    With ``activation_order`` columns of large inputs go first, and the scales are chosen before any of them moves.
    """

    kind: Literal["gptq"] = "gptq"
    activation_order: bool = True
    damping: Annotated[float, Field(gt=0, le=1)] = 0.01


class Awq(Calibrated):
    """Make columns of large inputs larger before rounding, and what comes before them smaller by as much."""

    kind: Literal["awq"] = "awq"
    steps: Annotated[int, Field(ge=1, le=100)] = 20


class SmoothQuant(Calibrated):
    """Move the spread of activations into the weights, so that both round well: s = max|x|^a / max|w|^(1 - a)."""

    kind: Literal["smoothquant"] = "smoothquant"
    strength: Annotated[float, Field(ge=0, le=1)] = 0.5


def _method_of(value: Any) -> Any:  # noqa: ANN401 - before validation it may be anything
    return {"kind": value} if isinstance(value, str) else value


Method = Annotated[Rtn | Search | Gptq | Awq, Field(discriminator="kind"), BeforeValidator(_method_of)]
W8A8Method = Annotated[
    Rtn | Search | Gptq | Awq | SmoothQuant, Field(discriminator="kind"), BeforeValidator(_method_of)
]
BlockMethod = Annotated[Rtn | Search, Field(discriminator="kind"), BeforeValidator(_method_of)]


class Float16(Settings):
    """Every weight as an IEEE half: 2 bytes, an ordinary Hugging Face directory."""

    scheme: Literal["float16"] = "float16"


class Bfloat16(Settings):
    """Every weight as a bfloat16: 2 bytes, the range of float32 and 8 bits of precision."""

    scheme: Literal["bfloat16"] = "bfloat16"


class Int8(Settings):
    """Symmetric int8 in groups of 32 columns with a float16 scale each: 1.0625 bytes a weight, GGUF's Q8_0."""

    scheme: Literal["int8"] = "int8"
    group: Literal[32] = 32
    method: Method = Rtn()
    keep: Kept = ()
    keep_sensitive: SensitiveKept = None

    @model_validator(mode="after")
    def _keep_means_something(self) -> "Int8":
        sensitive = () if self.keep_sensitive is None else (self.keep_sensitive,)
        if any(entry.dtype == "int8" for entry in (*self.keep, *sensitive)):
            raise ValueError("keep: what isn't kept finer is int8 already; keep it in float16, or not at all")
        return self


class Int8Channel(Settings):
    """Symmetric int8 with one float16 scale per row, and int8 activations with one scale per token (W8A8).

    The activations of the blocks' linears are rounded as they come, so nothing about them is stored; embeddings and
    head have int8 weights and float activations.
    """

    scheme: Literal["int8-channel"] = "int8-channel"
    method: W8A8Method = Rtn()
    keep: Kept = ()
    keep_sensitive: SensitiveKept = None


class Int4(Settings):
    """Symmetric int4, codes -8..7, in groups of columns with a float16 scale each: 0.56 bytes a weight, GGUF's Q4_0."""

    scheme: Literal["int4"] = "int4"
    group: Literal[32, 128] = 32
    method: Method = Rtn()
    keep: Kept = ()
    keep_sensitive: SensitiveKept = None


class KQuant3(Settings):
    """llama.cpp's Q3_K: 3.4 bits a weight, scales that are themselves quantized; GGUF only."""

    scheme: Literal["q3_k"] = "q3_k"
    method: BlockMethod = Rtn()
    keep: Kept = ()
    keep_sensitive: SensitiveKept = None


class KQuant2(Settings):
    """llama.cpp's Q2_K: 2.6 bits a weight, scales and minima that are themselves quantized; GGUF only."""

    scheme: Literal["q2_k"] = "q2_k"
    method: BlockMethod = Rtn()
    keep: Kept = ()
    keep_sensitive: SensitiveKept = None


Scheme = Annotated[
    Float16 | Bfloat16 | Int8 | Int8Channel | Int4 | KQuant3 | KQuant2,
    Field(discriminator="scheme"),
]
"""One entry of a recipe's ``quantize`` list."""


def label_of(scheme: Scheme) -> str:
    """What a variant of this scheme is called after its model: "int8", "int4-g128-gptq", "q3_k-keep".

    Two settings of one label differ in nothing that the label tells, so a recipe may not name both.
    """
    parts: list[str] = [scheme.scheme]
    if isinstance(scheme, Int4) and scheme.group != 32:
        parts.append(f"g{scheme.group}")
    method = getattr(scheme, "method", Rtn())
    if not isinstance(method, Rtn):
        parts.append(method.kind)
    if getattr(scheme, "keep", ()):
        parts.append("keep")
    sensitive = keep_sensitive_of(scheme)
    if sensitive is not None:
        parts.append(f"sensitive{sensitive.linears}")
    return "-".join(parts)


def calibration_of(scheme: Scheme) -> Calibrated | None:
    """The scheme's method where that is one that needs text."""
    method = getattr(scheme, "method", None)
    return method if isinstance(method, Calibrated) else None


def keep_sensitive_of(scheme: Scheme) -> KeepSensitive | None:
    """How many linears the scheme keeps finer by measurement; None where it keeps none so."""
    return getattr(scheme, "keep_sensitive", None)


def text_tokens_of(scheme: Scheme) -> int:
    """How many tokens of text the scheme looks at: its method, or the choice of what to keep; 0 for neither."""
    readers = (calibration_of(scheme), keep_sensitive_of(scheme))
    return max((reader.calibration_tokens for reader in readers if reader is not None), default=0)


def repeated_labels(schemes: Sequence[Scheme]) -> list[str]:
    """Labels that more than one of the schemes has."""
    return [label for label, times in Counter(map(label_of, schemes)).items() if times > 1]
