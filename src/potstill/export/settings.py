"""Into which files do the models go? What a recipe's ``export`` list can name; torch-free."""

from typing import Annotated, Literal

from pydantic import Field

from potstill.core.settings import Settings

__all__ = ["DTYPES", "CompressedTensorsExport", "Dtype", "Export", "GgufExport", "OnnxExport", "OpenvinoExport"]

Dtype = Literal["float32", "float16", "bfloat16", "int8", "int4", "q3_k", "q2_k"]
DTYPES: tuple[Dtype, ...] = ("float32", "float16", "bfloat16", "int8", "int4", "q3_k", "q2_k")
"""What most weights of a file are stored in: the first word of a variant's label."""


class GgufExport(Settings):
    """One GGUF file per model and dtype, for llama.cpp and everything built on it."""

    format: Literal["gguf"] = "gguf"


class OnnxExport(Settings):
    """One ONNX folder per model and dtype, for onnxruntime.

    ``activations``: with int8, products of quantized weights round their inputs to int8 first, as llama.cpp does; with
    float32 they don't, which is exact and, for 8-bit weights, takes the memory and time of float32.
    """

    format: Literal["onnx"] = "onnx"
    activations: Literal["float32", "int8"] = "int8"


class OpenvinoExport(Settings):
    """One OpenVINO folder per model and dtype, for OpenVINO and ``openvino_genai``.

    ``activations``: with int8, products of quantized weights round their inputs to int8 first, 32 at a time; with
    float32 they don't.
    """

    format: Literal["openvino"] = "openvino"
    activations: Literal["float32", "int8"] = "int8"


class CompressedTensorsExport(Settings):
    """One Hugging Face directory per model and dtype, its linears quantized, for vLLM and transformers.

    Embeddings, and a head that shares them, stand there as floats: transformers reads no embeddings as codes.
    """

    format: Literal["compressed-tensors"] = "compressed-tensors"


Export = Annotated[GgufExport | OnnxExport | OpenvinoExport | CompressedTensorsExport, Field(discriminator="format")]
"""One entry of a recipe's ``export`` list."""
