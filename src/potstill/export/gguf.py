"""How does a model directory become one GGUF file, bit for bit the same every time, with codes kept exactly?

Shapes: O rows (outputs) of a weight, I columns (inputs), G groups of 32 columns, N bytes of a row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from gguf import GGML_QUANT_VERSION, MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.constants import MODEL_ARCH
from numpy.typing import NDArray

from potstill.core import interrupt
from potstill.core.durable import replacing
from potstill.core.errors import InputError
from potstill.core.trace import Trace
from potstill.export.llama_layout import LlamaFacts, gguf_name, llama_facts, permuted_for_rope
from potstill.export.settings import Dtype
from potstill.export.tokenizer import GgufTokenizer, read_tokenizer
from potstill.model.weights import CodedTensor, Weights
from potstill.quantize.grids import quantize_int8, to_float16

__all__ = ["export_gguf", "pack_q8_0", "unpack_q8_0"]

_GROUP = 32
_FILE_TYPES: Mapping[Dtype, LlamaFileType] = MappingProxyType(
    {"float32": LlamaFileType.ALL_F32, "float16": LlamaFileType.MOSTLY_F16, "int8": LlamaFileType.MOSTLY_Q8_0}
)


def export_gguf(source_dir: Path, out_file: Path, dtype: Dtype, trace: Trace) -> None:
    """Write a Llama-type model as GGUF: matrices in ``dtype``, norms and biases in float32, tied embeddings once.

    The source is a Hugging Face directory, or for int8 also a quantized one, whose codes and scales are written as
    they are. Text is cut by llama.cpp as by the tokenizer of the directory; its beginning-of-text token is put before
    every text, as in the rows that potstill trains on. The file appears whole or not at all, and the same source gives
    the same bytes.

    Raises: InputError: a family, tokenizer or tensor that GGUF can't carry exactly, or a weight that ``dtype`` can't.
    """
    weights = Weights(source_dir)
    if weights.quantized and dtype != "int8":
        raise InputError(
            f"is quantized to int8 and can't be exported as {dtype}",
            where=str(source_dir),
            next_step="export the model that it was quantized from",
        )
    facts = llama_facts(weights.config, str(source_dir))
    tokenizer = read_tokenizer(source_dir, weights.config)
    if tokenizer.num_unused:
        trace.note("vocabulary", f"{tokenizer.num_unused} ids have no token; written as unused tokens")
    plans = [_plan(weights, name, facts, dtype, trace) for name in weights.names]
    with replacing(out_file) as temporary:
        writer = GGUFWriter(None, MODEL_ARCH_NAMES[MODEL_ARCH.LLAMA])
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
    _report(weights, plans, out_file, dtype, trace)


def pack_q8_0(coded: CodedTensor) -> NDArray[np.uint8]:
    """Blocks of a float16 scale and 32 codes, as GGUF lays Q8_0 out.

    Returns: uint8 [O, G * 34].
    """
    rows, groups = coded.scales_OG.shape
    scales_OGb = np.ascontiguousarray(coded.scales_OG).view(np.uint8).reshape(rows, groups, 2)
    codes_OGb = np.ascontiguousarray(coded.codes_OI).view(np.uint8).reshape(rows, groups, _GROUP)
    return np.concatenate([scales_OGb, codes_OGb], axis=2).reshape(rows, groups * (2 + _GROUP))


def unpack_q8_0(blocks_ON: NDArray[np.uint8]) -> CodedTensor:
    """The codes and scales of packed blocks: the inverse of ``pack_q8_0``."""
    rows = blocks_ON.shape[0]
    blocks_OGb = blocks_ON.reshape(rows, -1, 2 + _GROUP)
    scales_OG = np.ascontiguousarray(blocks_OGb[:, :, :2]).view(np.float16).reshape(rows, -1)
    codes_OI = np.ascontiguousarray(blocks_OGb[:, :, 2:]).view(np.int8).reshape(rows, -1)
    return CodedTensor(codes_OI, scales_OG)


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
    elements = int(np.prod(shape))
    stored: Dtype = dtype if len(shape) == 2 else "float32"
    if stored == "int8" and shape[1] % _GROUP:
        trace.fallback(f"{name} has {shape[1]} columns, no multiple of {_GROUP}: float16 in the GGUF file, not int8")
        stored = "float16"

    def floats() -> NDArray[np.float32]:
        return permuted_for_rope(weights.read(name).float().contiguous().numpy(), name, facts)

    def blocks() -> NDArray[np.uint8]:
        if not weights.is_coded(name):
            return pack_q8_0(quantize_int8(floats(), _GROUP, name=name))
        coded = weights.read_coded(name)
        codes_OI = permuted_for_rope(coded.codes_OI, name, facts)
        return pack_q8_0(CodedTensor(codes_OI, permuted_for_rope(coded.scales_OG, name, facts)))

    target = gguf_name(name, facts)
    if stored == "int8":
        return _Plan(target, shape, GGMLQuantizationType.Q8_0, elements // _GROUP * (_GROUP + 2), blocks)
    if stored == "float16":
        return _Plan(target, shape, GGMLQuantizationType.F16, elements * 2, lambda: to_float16(floats(), name=name))
    return _Plan(target, shape, GGMLQuantizationType.F32, elements * 4, floats)


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
