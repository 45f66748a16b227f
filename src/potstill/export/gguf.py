"""How does a model directory become one GGUF file, bit for bit the same every time, with codes kept exactly?

Shapes: O rows (outputs) of a weight, I columns (inputs), G groups of 32 columns, N bytes of a row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGML_QUANT_VERSION, MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, LlamaFileType
from numpy.typing import NDArray

from potstill.core import interrupt
from potstill.core.durable import replacing
from potstill.core.errors import InputError
from potstill.core.trace import Trace
from potstill.export.gguf_blocks import pack_blocks, pack_q8_0, unpack_q8_0
from potstill.export.llama_layout import LlamaFacts, gguf_name, llama_facts, permuted_for_rope
from potstill.export.parts import tell_activations
from potstill.export.settings import Dtype
from potstill.export.tokenizer import GgufTokenizer, read_tokenizer
from potstill.model.weights import Weights
from potstill.quantize.grids import quantize_int8, to_bfloat16, to_float16

__all__ = ["export_gguf", "pack_q8_0", "unpack_q8_0"]

_GROUP = 32
_FILE_TYPES: Mapping[Dtype, LlamaFileType] = MappingProxyType(
    {
        "float32": LlamaFileType.ALL_F32,
        "float16": LlamaFileType.MOSTLY_F16,
        "bfloat16": LlamaFileType.MOSTLY_BF16,
        "int8": LlamaFileType.MOSTLY_Q8_0,
        "int4": LlamaFileType.MOSTLY_Q4_0,
        "q3_k": LlamaFileType.MOSTLY_Q3_K_S,
        "q2_k": LlamaFileType.MOSTLY_Q2_K,
    }
)
_TYPES: Mapping[str, GGMLQuantizationType] = MappingProxyType(
    {
        "float32": GGMLQuantizationType.F32,
        "float16": GGMLQuantizationType.F16,
        "bfloat16": GGMLQuantizationType.BF16,
        "int8": GGMLQuantizationType.Q8_0,
        "int4": GGMLQuantizationType.Q4_0,
        "q3_k": GGMLQuantizationType.Q3_K,
        "q2_k": GGMLQuantizationType.Q2_K,
    }
)


def export_gguf(source_dir: Path, out_file: Path, dtype: Dtype, trace: Trace) -> None:
    """Write a Llama-type model as GGUF: matrices in ``dtype``, norms and biases in float32, tied embeddings once.

    The source is a Hugging Face directory (``dtype`` a float or int8), or a quantized one of that ``dtype``, whose
    codes and scales are written as they are: a scale that more than 32 columns share is repeated. Text is cut by
    llama.cpp as by the tokenizer of the directory; its beginning-of-text token is put before every text, as in the rows
    that potstill trains on. The file appears whole or not at all, and the same source gives the same bytes.

    Raises: InputError: a family, tokenizer or tensor that GGUF can't carry exactly, or a weight that ``dtype`` can't.
    """
    weights = Weights(source_dir)
    _check_dtype(weights, dtype)
    facts = llama_facts(weights.config, str(source_dir))
    tokenizer = read_tokenizer(source_dir, weights.config)
    if tokenizer.num_unused:
        trace.note("vocabulary", f"{tokenizer.num_unused} ids have no token; written as unused tokens")
    plans = [_plan(weights, name, facts, dtype, trace) for name in weights.names]
    with replacing(out_file) as temporary:
        writer = GGUFWriter(None, MODEL_ARCH_NAMES[facts.architecture])
        _describe(writer, facts, dtype)
        _describe_tokenizer(writer, tokenizer)
        for plan in plans:
            writer.add_tensor_info(plan.gguf_name, plan.shape, np.dtype(np.float32), plan.num_bytes, plan.type)
        writer.write_header_to_file(temporary)
        try:
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for done, plan in enumerate(plans, start=1):
                interrupt.check()
                writer.write_tensor_data(plan.read())
                trace.progress("export", done, len(plans), "tensors")
        finally:
            writer.close()
    tell_activations(weights, trace)
    _report(weights, plans, out_file, dtype, trace)


def _check_dtype(weights: Weights, dtype: Dtype) -> None:
    if weights.coded_dtype not in {None, dtype}:
        raise InputError(
            f"is quantized to {weights.coded_dtype} and can't be exported as {dtype}",
            where=str(weights.directory),
            next_step="export the model that it was quantized from",
        )
    if not weights.quantized and dtype in {"int4", "q3_k", "q2_k"}:
        raise InputError(
            f"isn't quantized, and can't be exported as {dtype} at once",
            where=str(weights.directory),
            next_step="quantize it first, and export what that makes",
        )


@dataclass(frozen=True)
class _Plan:
    """One tensor of the file: what the header says, and how to get its data when its turn comes."""

    gguf_name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    num_bytes: int
    read: Callable[[], NDArray[Any]]


def _plan(weights: Weights, name: str, facts: LlamaFacts, dtype: Dtype, trace: Trace) -> _Plan:
    shape = weights.shape(name)
    stored = _stored_type(weights, name, shape, dtype, trace)

    def floats() -> NDArray[np.float32]:
        return permuted_for_rope(weights.read(name).float().contiguous().numpy(), name, facts)

    def codes() -> NDArray[np.uint8]:
        coded = weights.read_coded(name) if weights.is_coded(name) else quantize_int8(floats(), _GROUP, name=name)
        blocks_ON = pack_blocks(coded)
        return permuted_for_rope(blocks_ON, name, facts) if weights.is_coded(name) else blocks_ON

    readers: Mapping[str, Callable[[], NDArray[Any]]] = {
        "F32": floats,
        "F16": lambda: to_float16(floats(), name=name),
        "BF16": lambda: to_bfloat16(floats(), name=name),
        "Q8_0": codes,
        "Q4_0": codes,
        "Q3_K": lambda: permuted_for_rope(weights.read_blocks(name).blocks_ON, name, facts),
        "Q2_K": lambda: permuted_for_rope(weights.read_blocks(name).blocks_ON, name, facts),
    }
    block, block_bytes = GGML_QUANT_SIZES[stored]
    num_bytes = int(np.prod(shape)) // block * block_bytes
    return _Plan(gguf_name(name, facts), shape, stored, num_bytes, readers[stored.name])


def _stored_type(
    weights: Weights, name: str, shape: tuple[int, ...], dtype: Dtype, trace: Trace
) -> GGMLQuantizationType:
    """What a tensor is in the file: what it is in a quantized directory, else ``dtype`` for matrices."""
    grid = weights.blocks_grid(name)
    if len(shape) != 2:
        return GGMLQuantizationType.F32
    if grid is not None:
        return _TYPES[grid]
    if weights.is_coded(name):
        wanted = _TYPES[f"int{weights.bits(name)}"]
    elif weights.quantized:
        return _TYPES[weights.dtype(name)]
    else:
        wanted = _TYPES[dtype]
    if wanted in {GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0} and shape[1] % _GROUP:
        trace.fallback(f"{name} has {shape[1]} columns, no multiple of {_GROUP}: float16, not {wanted.name}")
        return GGMLQuantizationType.F16
    return wanted


def _describe(writer: GGUFWriter, facts: LlamaFacts, dtype: Dtype) -> None:
    writer.add_type("model")
    writer.add_file_type(_FILE_TYPES[dtype])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(facts.vocabulary)
    writer.add_context_length(facts.context)
    writer.add_block_count(facts.blocks)
    writer.add_embedding_length(facts.width)
    writer.add_feed_forward_length(facts.mlp_width)
    writer.add_head_count(facts.heads)
    writer.add_head_count_kv(facts.kv_heads)
    writer.add_key_length(facts.head_width)
    writer.add_value_length(facts.head_width)
    writer.add_rope_dimension_count(facts.head_width)
    writer.add_rope_freq_base(facts.rope_base)
    writer.add_layer_norm_rms_eps(facts.norm_epsilon)


def _describe_tokenizer(writer: GGUFWriter, tokenizer: GgufTokenizer) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(list(tokenizer.tokens))
    writer.add_token_types(list(tokenizer.types))
    writer.add_token_merges(list(tokenizer.merges))
    if tokenizer.bos is not None:
        writer.add_bos_token_id(tokenizer.bos)
    if tokenizer.eos is not None:
        writer.add_eos_token_id(tokenizer.eos)
    if tokenizer.pad is not None:
        writer.add_pad_token_id(tokenizer.pad)
    writer.add_add_bos_token(tokenizer.bos is not None)


def _report(weights: Weights, plans: list[_Plan], out_file: Path, dtype: Dtype, trace: Trace) -> None:
    trace.input(
        f"weights for {out_file.name}",
        shape=[weights.num_parameters()],
        dtype=str(weights.read(weights.names[0]).dtype).removeprefix("torch."),
        example={"tensor": weights.names[0], "shape": list(weights.shape(weights.names[0]))},
    )
    trace.output(
        out_file.name,
        shape=[weights.num_parameters()],
        dtype=dtype,
        example={"tensor": plans[0].gguf_name, "type": plans[0].type.name, "bytes": plans[0].num_bytes},
    )
    trace.metric("file_bytes", out_file.stat().st_size, "bytes", file=out_file.name, dtype=dtype)
