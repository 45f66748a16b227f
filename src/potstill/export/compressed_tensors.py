"""How does a quantized directory become a compressed-tensors one, for vLLM and transformers, with codes kept exactly?

Weights in groups are packed into int32 (``pack-quantized``); weights with one scale per row stand as int8, for products
with activations rounded per token (``int-quantized``). The package ``compressed-tensors`` reads them
and isn't needed here.

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
from safetensors.torch import save_file
from torch import Tensor

from potstill.core import interrupt
from potstill.core.durable import write_json
from potstill.core.errors import InputError
from potstill.core.trace import Trace
from potstill.export.families import DecoderFacts, decoder_facts
from potstill.export.folder import copy_companions, folder_bytes, replacing_folder
from potstill.export.parts import require_codes
from potstill.export.settings import CompressedTensorsExport
from potstill.model.weights import CodedTensor, Weights

__all__ = ["export_compressed_tensors", "pack_int32", "unpack_int32"]


@dataclass(frozen=True, order=True)
class _Kind:
    """What linears of one entry of ``config_groups`` have in common; ``group`` 0 for one scale per row."""

    bits: int
    group: int

    @property
    def format(self) -> str:
        return "pack-quantized" if self.group else "int-quantized"

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
            "input_activations": None if self.group else rounded,
            "output_activations": None,
            "format": self.format,
        }


def export_compressed_tensors(
    _settings: CompressedTensorsExport, source_dir: Path, out_dir: Path, label: str, trace: Trace
) -> None:
    """Write a model as Hugging Face directory whose quantized linears stand as compressed-tensors has them.

    Codes and scales are those of the source; embeddings and head, which vLLM doesn't read as codes, are dequantized to
    float32, which holds code times scale exactly. A model that isn't quantized is written as it is.

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
    tensors: dict[str, Tensor] = {}
    kinds: dict[str, _Kind] = {}
    for name in weights.names:
        interrupt.check()
        require_codes(weights, name)
        module = name.removesuffix(".weight")
        if weights.is_coded(name) and name.startswith(facts.layout.blocks):
            coded = weights.read_coded(name)
            kinds[module] = _kind_of(coded)
            tensors |= _entries(module, coded)
            continue
        tensors[name] = weights.read(name).contiguous()
        if weights.is_coded(name):
            trace.fallback(
                f"{out_dir.name}: {name} stands in float32: compressed-tensors has codes for the blocks only"
            )
    left = {name.removesuffix(".weight") for name, tensor in tensors.items() if tensor.ndim == 2}
    plain = sorted(module for module in left - set(kinds) if f"{module}.weight" in tensors)
    with replacing_folder(out_dir) as temporary:
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
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


def _kind_of(coded: CodedTensor) -> _Kind:
    return _Kind(coded.bits, 0 if coded.per_row else coded.codes_OI.shape[1] // coded.scales_OG.shape[1])


def _entries(module: str, coded: CodedTensor) -> dict[str, Tensor]:
    scales_OG = torch.from_numpy(coded.scales_OG)
    if _kind_of(coded).group == 0:
        return {f"{module}.weight": torch.from_numpy(coded.codes_OI), f"{module}.weight_scale": scales_OG}
    return {
        f"{module}.weight_packed": torch.from_numpy(pack_int32(coded.codes_OI, coded.bits)),
        f"{module}.weight_scale": scales_OG,
        f"{module}.weight_shape": torch.tensor(coded.codes_OI.shape, dtype=torch.int64),
    }


def _quantization_config(kinds: Mapping[str, _Kind], plain: list[str], facts: DecoderFacts) -> dict[str, Any]:
    """What transformers and vLLM read: the commonest kind is that of all linears, others go by the modules' names."""
    commonest = Counter(sorted(kinds.values())).most_common(1)[0][0]
    groups = {"group_0": commonest.entry(["Linear"])}
    for number, kind in enumerate(sorted(set(kinds.values()) - {commonest}), start=1):
        groups[f"group_{number}"] = kind.entry(sorted(_live_name(name) for name, own in kinds.items() if own == kind))
    formats = {kind.format for kind in kinds.values()}
    tables = {facts.layout.top.get(role) for role in ("embeddings", "positions")}
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": sorted({"lm_head", *(_live_name(name) for name in plain if name not in tables)}),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _live_name(module: str) -> str:
    """The module's name in transformers, where the file's differs: GPT-NeoX's head."""
    return "lm_head" if module == "embed_out" else module
