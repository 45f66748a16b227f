"""How does a model directory become one GGUF file, bit for bit the same every time, with codes kept exactly?

Shapes: O rows (outputs) of a weight, I columns (inputs), G groups of 32 columns, N bytes of a row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from gguf import GGML_QUANT_SIZES, MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter
from numpy.typing import NDArray

from potstill.core import interrupt
from potstill.core.durable import replacing
from potstill.core.errors import InputError
from potstill.core.trace import Trace
from potstill.export.families import DecoderFacts
from potstill.export.gguf_blocks import pack_blocks, pack_q8_0, unpack_q8_0
from potstill.export.gguf_metadata import describe_model, describe_tokenizer
from potstill.export.llama_layout import (
    approximations,
    architecture_of,
    gguf_facts,
    gguf_name,
    norm_change,
    rope_factors,
    row_order,
)
from potstill.export.parts import COMPUTED, tell_activations
from potstill.export.settings import Dtype
from potstill.export.tokenizer import read_tokenizer
from potstill.export.tokenizer_check import require_same_cut
from potstill.model.weights import Weights, inputs_first
from potstill.quantize.grids import quantize_int8, to_bfloat16, to_float16

__all__ = ["export_gguf", "pack_q8_0", "unpack_q8_0"]

T = TypeVar("T", bound=np.generic)

_GROUP = 32
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
    """Write a model as GGUF: matrices in ``dtype``, norms and biases in float32, tied embeddings once.

    The source is a Hugging Face directory (``dtype`` a float or int8), or a quantized one of that ``dtype``, whose
    codes and scales are written as they are: a scale that more than 32 columns share is repeated. Text is cut by
    llama.cpp as by the tokenizer of the directory; its beginning-of-text token is put before every text, as in the rows
    that potstill trains on. The file appears whole or not at all, and the same source gives the same bytes.

    Raises: InputError: a family, tokenizer or tensor that GGUF can't carry exactly, or a weight that ``dtype`` can't.
    """
    weights = Weights(source_dir)
    _check_dtype(weights, dtype)
    facts = gguf_facts(weights.config, str(source_dir))
    tokenizer = read_tokenizer(source_dir, weights.config)
    if tokenizer.num_unused:
        trace.note("vocabulary", f"{tokenizer.num_unused} ids have no token; written as unused tokens")
    plans = _plans(weights, facts, dtype, trace)
    for text in (*approximations(facts), *tokenizer.fallbacks):
        trace.fallback(text)
    with replacing(out_file) as temporary:
        writer = GGUFWriter(None, MODEL_ARCH_NAMES[architecture_of(facts).arch])
        describe_model(writer, facts, dtype)
        describe_tokenizer(writer, tokenizer)
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
        require_same_cut(source_dir, temporary)
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


def _names(weights: Weights, facts: DecoderFacts) -> list[str]:
    """The tensors to write: all but a tied head, and what old checkpoints carry though the model computes it.

    Raises: InputError: a tensor, or the bias of a linear, that llama.cpp's graph hasn't, or one that it needs.
    """
    head = f"{facts.name('head')}.weight" if facts.tied else None
    names = [name for name in weights.names if name != head and not name.endswith(COMPUTED)]
    runs = architecture_of(facts)
    for part, role in facts.roles().items():
        bias = f"{part}.bias"
        if role in runs.must_have_bias and bias not in names:
            raise InputError(
                f"llama.cpp's {runs.arch.name} needs {bias}, and it isn't there", where=str(weights.directory)
            )
        allowed = runs.must_have_bias | runs.may_have_bias
        if bias in names and facts.layout.norm == "rms" and role not in allowed:
            raise InputError(f"llama.cpp's {runs.arch.name} has no {bias}", where=str(weights.directory))
    return names


def _plans(weights: Weights, facts: DecoderFacts, dtype: Dtype, trace: Trace) -> list[_Plan]:
    """Every tensor of the file in its order."""
    plans = [*_plan_rope(facts), *(_plan(weights, name, facts, dtype, trace) for name in _names(weights, facts))]
    if facts.tied and architecture_of(facts).wants_own_head:
        table = gguf_name(f"{facts.name('embeddings')}.weight", facts)
        (embeddings,) = (plan for plan in plans if plan.gguf_name == table)
        plans.append(replace(embeddings, gguf_name=gguf_name(f"{facts.name('head')}.weight", facts)))
    return plans


def _plan_rope(facts: DecoderFacts) -> list[_Plan]:
    """The tensor of rotation factors, where the model's positions are stretched in a way that needs one."""
    rope = facts.blocks[0].rope
    factors_J = None if rope is None else rope_factors(rope, facts.head_width)
    if factors_J is None:
        return []
    kind = GGMLQuantizationType.F32
    return [_Plan("rope_freqs.weight", factors_J.shape, kind, factors_J.nbytes, lambda: factors_J)]


def _plan(weights: Weights, name: str, facts: DecoderFacts, dtype: Dtype, trace: Trace) -> _Plan:
    role = facts.roles().get(name.rpartition(".")[0], "")
    turned = inputs_first(weights.config, name)
    shape = weights.shape(name)[::-1] if turned else weights.shape(name)
    stored = _stored_type(weights, name, role, shape, dtype, trace)
    order_O = row_order(role, facts)

    def ordered(rows_O: NDArray[T]) -> NDArray[T]:
        return rows_O if order_O is None else rows_O[order_O]

    def floats() -> NDArray[np.float32]:
        tensor = weights.read(name).float()
        rows_O: NDArray[np.float32] = (tensor.T if turned else tensor).contiguous().numpy()
        if role.endswith("norm") and name.endswith(".weight"):
            offset, factor = norm_change(role, facts)
            rows_O = (rows_O + offset) * factor
        return ordered(rows_O)

    def codes() -> NDArray[np.uint8]:
        if weights.is_coded(name):
            return ordered(pack_blocks(weights.read_coded(name)))
        return pack_blocks(quantize_int8(floats(), _GROUP, name=name))

    readers: Mapping[str, Callable[[], NDArray[Any]]] = {
        "F32": floats,
        "F16": lambda: to_float16(floats(), name=name),
        "BF16": lambda: to_bfloat16(floats(), name=name),
        "Q8_0": codes,
        "Q4_0": codes,
        "Q3_K": lambda: ordered(weights.read_blocks(name).blocks_ON),
        "Q2_K": lambda: ordered(weights.read_blocks(name).blocks_ON),
    }
    block, block_bytes = GGML_QUANT_SIZES[stored]
    num_bytes = int(np.prod(shape)) // block * block_bytes
    return _Plan(gguf_name(name, facts), shape, stored, num_bytes, readers[stored.name])


def _stored_type(
    weights: Weights, name: str, role: str, shape: tuple[int, ...], dtype: Dtype, trace: Trace
) -> GGMLQuantizationType:
    """What a tensor is in the file: what it is in a quantized directory, else ``dtype`` for matrices.

    Tables of positions stay float32, as in quantized directories.
    """
    grid = weights.blocks_grid(name)
    if len(shape) != 2 or (role == "positions" and not weights.quantized):
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


def _report(weights: Weights, plans: Sequence[_Plan], out_file: Path, dtype: Dtype, trace: Trace) -> None:
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
