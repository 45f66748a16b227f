"""Which tensors does a model directory hold? Read one at a time, without building the model.

A *plain* directory is Hugging Face's (``model.safetensors``, or shards with an index). A *quantized* one holds
``quantized.safetensors`` instead: ``NAME.codes`` and ``NAME.scales`` for each quantized tensor, the others as they are,
and under the metadata key ``scheme`` the settings that made it. Codes of 8 bits stand there as int8 [O, I], codes of
4 bits as uint8 [O, I / 2]: the code of column 2j plus 8 in the low half of a byte, that of 2j + 1 in the high half.
Tensors on llama.cpp's k-quant grids stand there as its blocks, ``NAME.q3_k`` and ``NAME.q2_k``, uint8 [O, N].

Shapes: O rows (outputs) of a weight, I columns (inputs), G groups of I / G columns that share a scale, N bytes
of a row. GPT-2 stores its linears with inputs first; codes are [O, I] there too, and only ``read`` and ``shape`` speak
of the stored order.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from potstill.core.errors import BugError, InputError
from potstill.model.activations import round_inputs
from potstill.model.directory import check_config, weight_files

__all__ = [
    "CODES",
    "OTHER_NAMES",
    "QUANTIZED_FILE",
    "SCALES",
    "CodedTensor",
    "GgmlBlocks",
    "Weights",
    "coded_entries",
    "dequantize",
    "inputs_first",
    "load_quantized",
]

QUANTIZED_FILE = "quantized.safetensors"
CODES = ".codes"
SCALES = ".scales"

_BLOCKS: Mapping[str, gguf.GGMLQuantizationType] = MappingProxyType(
    {"q3_k": gguf.GGMLQuantizationType.Q3_K, "q2_k": gguf.GGMLQuantizationType.Q2_K}
)
_DTYPES: Mapping[str, str] = MappingProxyType({"F32": "float32", "F16": "float16", "BF16": "bfloat16"})
_CONV1D = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
_IN_BLOCK = re.compile(r"(?:^|\.)(?:layers|h)\.\d+\.")
_HEAD = "lm_head.weight"
OTHER_NAMES = {"embed_out.weight": _HEAD}
"""Names that files of GPT-NeoX have and its model hasn't."""
_EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class CodedTensor:
    """A weight as integers of 8 or 4 ``bits`` (-8..7) and the scale of each group of I / G columns.

    ``per_row``: one scale per row by its scheme, W8A8; G = 1 alone doesn't say so, for 32 columns are one group of 32.

    Shapes: codes_OI int8, whatever the bits; scales_OG float16.
    """

    codes_OI: NDArray[np.int8]
    scales_OG: NDArray[np.float16]
    bits: int = 8
    per_row: bool = False


@dataclass(frozen=True)
class GgmlBlocks:
    """A weight as llama.cpp's blocks of 256 columns, of the grid "q3_k" or "q2_k".

    Shapes: blocks_ON uint8.
    """

    blocks_ON: NDArray[np.uint8]
    grid: str

    def dequantize(self) -> NDArray[np.float32]:
        """The weight [O, I] that llama.cpp reads from the blocks."""
        weight_OI: NDArray[np.float32] = gguf.quants.dequantize(self.blocks_ON, _BLOCKS[self.grid])
        return weight_OI


def coded_entries(name: str, coded: CodedTensor) -> dict[str, Tensor]:
    """The entries of ``quantized.safetensors`` for a coded tensor: codes of 4 bits two to a byte, and scales."""
    codes = coded.codes_OI
    if coded.bits == 4:
        shifted_OI = (codes + 8).astype(np.uint8)
        codes = shifted_OI[:, 0::2] | (shifted_OI[:, 1::2] << 4)
    return {name + CODES: torch.from_numpy(codes), name + SCALES: torch.from_numpy(coded.scales_OG)}


def inputs_first(config: Mapping[str, Any], name: str) -> bool:
    """Whether a family stores this weight as [inputs, outputs]: the linears of GPT-2's blocks."""
    return config.get("model_type") == "gpt2" and bool(_CONV1D.search(name))


def dequantize(coded: CodedTensor) -> NDArray[np.float32]:
    """Code times its group's scale, in float32: exactly the numbers that every runtime computes from the same block.

    Returns: float32 [O, I].
    """
    rows, columns = coded.codes_OI.shape
    codes_OGg = coded.codes_OI.reshape(rows, coded.scales_OG.shape[1], -1).astype(np.float32)
    weights_OGg = codes_OGg * coded.scales_OG.astype(np.float32)[:, :, None]
    return weights_OGg.reshape(rows, columns)


class Weights:
    """The tensors of a model directory by Hugging Face's names, read when asked for; tied weights appear once.

    Raises: InputError: there are no weights, a file is damaged, or the output head is missing though it isn't tied.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = dict(check_config(directory / "config.json"))
        self.quantized = (directory / QUANTIZED_FILE).is_file()
        self._file_of = self._locate()
        self.tied = bool(self.config.get("tie_word_embeddings", False))
        if self.tied and _EMBEDDING in self.names:
            self._file_of = {key: file for key, file in self._file_of.items() if not key.startswith(_HEAD)}
        elif _EMBEDDING in self.names and not any(name.startswith(_HEAD) for name in self.names):
            raise InputError(
                f"{_HEAD} is missing, and config.json doesn't tie it to the embeddings",
                where=str(directory),
                next_step='set "tie_word_embeddings": true if they are one tensor, or save the model again',
            )

    @property
    def names(self) -> list[str]:
        """Names of the tensors, sorted; a coded tensor counts as one."""
        if not self.quantized:
            return sorted(self._file_of)
        endings = (CODES, *(f".{grid}" for grid in _BLOCKS))
        keys = [key for key in self._file_of if not key.endswith(SCALES)]
        return sorted(key.rpartition(".")[0] if key.endswith(endings) else key for key in keys)

    @cached_property
    def scheme(self) -> Mapping[str, Any]:
        """The settings that a quantized directory was made with; empty for a plain one."""
        if not self.quantized:
            return {}
        with _opened(self.directory / QUANTIZED_FILE) as file:
            scheme: dict[str, Any] = json.loads((file.metadata() or {}).get("scheme", "{}"))
        return scheme

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor as Hugging Face has it, from the file's header alone."""
        grid = self.blocks_grid(name)
        if grid is not None:
            rows, num_bytes = self._stored(f"{name}.{grid}")[0]
            block, block_bytes = gguf.GGML_QUANT_SIZES[_BLOCKS[grid]]
            columns = num_bytes // block_bytes * block
        elif self.is_coded(name):
            (rows, columns), stored = self._stored(name + CODES)
            columns *= 2 if stored == "U8" else 1
        else:
            return self._stored(name)[0]
        return (columns, rows) if inputs_first(self.config, name) else (rows, columns)

    def is_coded(self, name: str) -> bool:
        """Whether the tensor is stored as codes and scales."""
        return self.quantized and name + CODES in self._file_of

    def blocks_grid(self, name: str) -> str | None:
        """The k-quant grid of a tensor that is stored as llama.cpp's blocks; None for any other."""
        return next((grid for grid in _BLOCKS if self.quantized and f"{name}.{grid}" in self._file_of), None)

    @property
    def integer_products(self) -> list[str]:
        """Weights multiplied with activations rounded to int8 per token: those of the blocks with a scale per row."""
        coded = (name for name in self.names if self.is_coded(name) and _IN_BLOCK.search(name))
        return [name for name in coded if self._per_row(name)]

    def bits(self, name: str) -> int:
        """The bits of a coded tensor's codes, from the file's header alone."""
        return 4 if self._stored(name + CODES)[1] == "U8" else 8

    def dtype(self, name: str) -> str:
        """The dtype of a tensor that is stored as it is ("float32"), from the file's header alone."""
        return _DTYPES[self._stored(name)[1]]

    @property
    def coded_dtype(self) -> str | None:
        """What a quantized directory's weights are stored in ("int8", "int4", "q3_k"); None for a plain one."""
        return str(self.scheme.get("scheme", "int8")).partition("-")[0] if self.quantized else None

    def read(self, name: str) -> Tensor:
        """A tensor in the dtype of the file; a coded one dequantized to float32."""
        if self.blocks_grid(name) is not None:
            weight = torch.from_numpy(self.read_blocks(name).dequantize())
        elif self.is_coded(name):
            weight = torch.from_numpy(dequantize(self.read_coded(name)))
        else:
            return self._read(name)
        return weight.T.contiguous() if inputs_first(self.config, name) else weight

    def read_blocks(self, name: str) -> GgmlBlocks:
        """The blocks of a tensor on a k-quant grid, rows being outputs in every family."""
        grid = self.blocks_grid(name)
        if grid is None:
            raise BugError("isn't stored as blocks", where=name)
        return GgmlBlocks(self._read(f"{name}.{grid}").numpy(), grid)

    def read_coded(self, name: str) -> CodedTensor:
        """The codes and scales of a coded tensor, [O, I] in every family."""
        codes, scales_OG = self._read(name + CODES).numpy(), self._read(name + SCALES).numpy()
        if codes.dtype != np.uint8:
            return CodedTensor(codes, scales_OG, per_row=self._per_row(name))
        codes_OI = np.empty((codes.shape[0], 2 * codes.shape[1]), dtype=np.int8)
        codes_OI[:, 0::2] = (codes & 15).astype(np.int8) - 8
        codes_OI[:, 1::2] = (codes >> 4).astype(np.int8) - 8
        return CodedTensor(codes_OI, scales_OG, bits=4)

    def num_parameters(self) -> int:
        """How many numbers the tensors hold; tied weights count once."""
        return sum(int(np.prod(self.shape(name))) for name in self.names)

    def num_bytes(self) -> int:
        """The size of the weights' files on disk."""
        return sum(file.stat().st_size for file in set(self._file_of.values()))

    def _locate(self) -> dict[str, Path]:
        files = [self.directory / QUANTIZED_FILE] if self.quantized else weight_files(self.directory)
        located: dict[str, Path] = {}
        for path in files:
            with _opened(path) as file:
                located |= dict.fromkeys(file.keys(), path)
        return located

    def _per_row(self, name: str) -> bool:
        """Whether a coded tensor has one scale per row by its scheme; what a W8A8 scheme keeps finer has groups."""
        kept = [entry["tensors"] for entry in self.scheme.get("keep", ())]
        return self.scheme.get("scheme") == "int8-channel" and not any(fnmatchcase(name, one) for one in kept)

    def _stored(self, key: str) -> tuple[tuple[int, ...], str]:
        """The shape of an entry of the file, and its dtype as safetensors spells it."""
        with _opened(self._file_of[key]) as file:
            entry = file.get_slice(key)
            return tuple(entry.get_shape()), str(entry.get_dtype())

    def _read(self, key: str) -> Tensor:
        path = self._file_of[key]
        try:
            with _opened(path) as file:
                tensor: Tensor = file.get_tensor(key)
        except SafetensorError as error:
            raise InputError(f"{key} can't be read: {error}", where=str(path)) from error
        return tensor


def load_quantized(directory: Path) -> Any:  # noqa: ANN401 - a transformers model, whose package is untyped
    """The causal LM of a quantized directory with its weights dequantized: PyTorch's view of exactly those codes.

    Where the scheme has int8 activations, the inputs of the blocks' coded linears are rounded as they come.

    Returns: a transformers model in float32, in evaluation mode.
    Raises: InputError: the directory is damaged.
    """
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415 - others read weights without it

    weights = Weights(directory)
    state = {OTHER_NAMES.get(name, name): weights.read(name).float() for name in weights.names}
    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    auto: Any = AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        model = auto.from_config(config, dtype=torch.float32)
    if weights.tied:
        table = model.get_input_embeddings().weight
        state[_HEAD] = next(state[name] for name, one in model.named_parameters() if one is table and name in state)
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise InputError(f"doesn't hold the tensors of its config.json: {error}", where=str(directory)) from error
    wrong = [*unexpected, *(name for name in missing if not (weights.tied and name == _HEAD))]
    if wrong:
        raise InputError(f"doesn't hold the tensors of its config.json: {', '.join(wrong)}", where=str(directory))
    for name in weights.integer_products:
        round_inputs(model.get_submodule(name.removesuffix(".weight")))
    return model.eval()


def _opened(path: Path) -> Any:  # noqa: ANN401 - safetensors' handle is untyped
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise InputError(f"is no safetensors file: {error}", where=str(path)) from error
