"""How does a quantized directory become a compressed-tensors one, for vLLM and transformers, with codes kept exactly?

Codes are packed into int32 (``pack-quantized``); those of W8A8 products, whose activations are rounded per token, stand
as int8 (``int-quantized``). The package ``compressed-tensors`` reads them and isn't needed here.

Shapes: O rows of a weight, I columns, G groups of columns that share a scale, W words of 32 bits.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from potstill.core import interrupt
from potstill.core.durable import write_json
from potstill.core.errors import InputError
from potstill.core.trace import Trace
from potstill.export.families import DecoderFacts, decoder_facts
from potstill.export.folder import copy_companions, folder_bytes, replacing_folder
from potstill.export.parts import require_codes
from potstill.export.settings import CompressedTensorsExport
from potstill.model.tensor_file import PlannedTensor, write_one_by_one
from potstill.model.weights import CodedTensor, Weights

__all__ = ["export_compressed_tensors", "pack_int32", "unpack_int32"]


@dataclass(frozen=True, order=True)
class _Kind:
    """What linears of one entry of ``config_groups`` have in common; ``group`` 0 for one scale per row.

    ``rounds``: activations are rounded to int8 per token before the product.
    """

    bits: int
    group: int
    rounds: bool

    @property
    def format(self) -> str:
        return "int-quantized" if self.rounds else "pack-quantized"

    def entry(self, targets: list[str]) -> dict[str, Any]:
        """The entry of ``config_groups``."""
        weights = {
            "num_bits": self.bits,
            "type": "int",
            "symmetric": True,
            "strategy": "group" if self.group else "channel",
            "group_size": self.group or None,
            "dynamic": False,
        }
        rounded = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
        return {
            "targets": targets,
            "weights": weights,
            "input_activations": rounded if self.rounds else None,
            "output_activations": None,
            "format": self.format,
        }


def export_compressed_tensors(
    _settings: CompressedTensorsExport, source_dir: Path, out_dir: Path, label: str, trace: Trace
) -> None:
    """Write a model as Hugging Face directory whose quantized linears stand as compressed-tensors has them.

    Codes and scales are those of the source; embeddings, which transformers doesn't read as codes, and with them a head
    that shares them, are dequantized to float32, which holds code times scale exactly. A model that isn't quantized is
    written as it is. No more than one tensor is in memory.

    Raises: InputError: a family whose linears transformers doesn't build of ``nn.Linear``, or one that isn't exported.
    """
    weights = Weights(source_dir)
    facts = decoder_facts(weights.config, str(source_dir))
    if weights.quantized and facts.layout.columns_first:
        raise InputError(
            f"{facts.family} keeps its weights in Conv1D, which compressed-tensors doesn't quantize",
            where=str(source_dir),
            next_step="export it to another format",
        )
    planned: dict[str, PlannedTensor] = {}
    kinds: dict[str, _Kind] = {}
    plain: list[str] = []
    integer_products = set(weights.integer_products)
    for name in weights.names:
        interrupt.check()
        require_codes(weights, name)
        module = name.removesuffix(".weight")
        if weights.is_coded(name) and (name.startswith(facts.layout.blocks) or module == facts.layout.top["head"]):
            coded = weights.read_coded(name)
            kinds[module] = _kind_of(coded, rounds=name in integer_products)
            planned |= _codes(weights, module, coded, kinds[module])
            continue
        planned[name] = _floats(weights, name)
        plain += [module] if len(planned[name].shape) == 2 else []
        if weights.is_coded(name):
            trace.fallback(f"{name} stands in float32: transformers reads no embeddings as codes")
    with replacing_folder(out_dir) as temporary:
        write_one_by_one(planned, temporary / "model.safetensors", {"format": "pt"})
        copy_companions(source_dir, temporary)
        config = {key: value for key, value in weights.config.items() if key != "torch_dtype"}
        if kinds:
            config |= {"dtype": "float32", "quantization_config": _quantization_config(kinds, plain, facts)}
            write_json(temporary / "config.json", config)
    trace.metric("file_bytes", folder_bytes(out_dir), "bytes", file=out_dir.name, dtype=label)


def pack_int32(codes_OI: NDArray[np.int8], bits: int) -> NDArray[np.int32]:
    """Codes from zero up, 32 / bits to a word, the first in the lowest bits; a last word is filled with zeros.

    Returns: int32 [O, W].
    """
    per_word = 32 // bits
    shifted_OI = (codes_OI.astype(np.int64) + (1 << (bits - 1))).astype(np.uint32)
    padded_OI = np.pad(shifted_OI, ((0, 0), (0, -shifted_OI.shape[1] % per_word)))
    words_OWp = padded_OI.reshape(len(codes_OI), -1, per_word) << (bits * np.arange(per_word, dtype=np.uint32))
    words_OW: NDArray[np.int32] = np.bitwise_or.reduce(words_OWp, axis=2).astype(np.uint32).view(np.int32)
    return words_OW


def unpack_int32(words_OW: NDArray[np.int32], bits: int, columns: int) -> NDArray[np.int8]:
    """The codes [O, columns] of packed words: the inverse of ``pack_int32``."""
    shifts = bits * np.arange(32 // bits, dtype=np.uint32)
    codes_OWp = (words_OW.view(np.uint32)[:, :, None] >> shifts) & ((1 << bits) - 1)
    shifted_OI = codes_OWp.reshape(len(words_OW), -1)[:, :columns].astype(np.int16)
    return (shifted_OI - (1 << (bits - 1))).astype(np.int8)


def _kind_of(coded: CodedTensor, *, rounds: bool) -> _Kind:
    group = 0 if coded.per_row else coded.codes_OI.shape[1] // coded.scales_OG.shape[1]
    return _Kind(coded.bits, group, rounds)


def _codes(weights: Weights, module: str, coded: CodedTensor, kind: _Kind) -> dict[str, PlannedTensor]:
    """The entries of a coded linear, read again when they are written."""
    name, bits = f"{module}.weight", coded.bits
    rows, columns = coded.codes_OI.shape
    scales = PlannedTensor(
        torch.float16, coded.scales_OG.shape, lambda: torch.from_numpy(weights.read_coded(name).scales_OG)
    )
    if kind.rounds:
        codes = PlannedTensor(torch.int8, (rows, columns), lambda: torch.from_numpy(weights.read_coded(name).codes_OI))
        return {name: codes, f"{name}_scale": scales}
    words = -(-columns * bits // 32)
    packed = PlannedTensor(
        torch.int32,
        (rows, words),
        lambda: torch.from_numpy(pack_int32(weights.read_coded(name).codes_OI, bits)),
    )
    shape = PlannedTensor(torch.int64, (2,), lambda: torch.tensor((rows, columns), dtype=torch.int64))
    return {f"{name}_packed": packed, f"{name}_scale": scales, f"{name}_shape": shape}


def _floats(weights: Weights, name: str) -> PlannedTensor:
    return PlannedTensor(weights.read(name).dtype, weights.shape(name), lambda: weights.read(name))


def _quantization_config(kinds: Mapping[str, _Kind], plain: list[str], facts: DecoderFacts) -> dict[str, Any]:
    """What transformers and vLLM read: the commonest kind is that of all linears, others go by the modules' names."""
    commonest = Counter(sorted(kinds.values())).most_common(1)[0][0]
    groups = {}
    for number, kind in enumerate(sorted(set(kinds.values()) - {commonest}), start=1):
        groups[f"group_{number}"] = kind.entry(sorted(_live_name(name) for name, own in kinds.items() if own == kind))
    groups["group_0"] = commonest.entry(["Linear"])
    formats = {kind.format for kind in kinds.values()}
    tables = {facts.layout.top.get(role) for role in ("embeddings", "positions")}
    ignored = {_live_name(name) for name in plain if name not in tables}
    if facts.layout.top["head"] not in kinds:
        ignored.add(_live_name(facts.layout.top["head"]))
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": sorted(ignored),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _live_name(module: str) -> str:
    """The module's name; of GPT-NeoX's head both that in transformers and that in the file, which vLLM keeps."""
    return "re:(lm_head|embed_out)$" if module == "embed_out" else module
