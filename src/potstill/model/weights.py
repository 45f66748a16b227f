"""Which tensors does a model directory hold? Read one at a time, without building the model.

A *plain* directory is Hugging Face's (``model.safetensors``, or shards with an index). A *quantized* one holds
``quantized.safetensors`` instead: ``NAME.codes`` and ``NAME.scales`` for each quantized tensor, the others as they are,
and under the metadata key ``scheme`` the settings that made it. Codes of 8 bits stand there as int8 [O, I], codes of
4 bits as uint8 [O, I / 2]: the code of column 2j plus 8 in the low half of a byte, that of 2j + 1 in the high half.

Shapes: O rows (outputs) of a weight, I columns (inputs), G groups of I / G columns that share a scale. GPT-2 stores its
linears with inputs first; codes are [O, I] there too, and only ``read`` and ``shape`` speak of the stored order.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from potstill.core.errors import InputError
from potstill.model.directory import check_config, weight_files

__all__ = [
    "CODES",
    "QUANTIZED_FILE",
    "SCALES",
    "CodedTensor",
    "Weights",
    "coded_entries",
    "dequantize",
    "inputs_first",
    "load_quantized",
]

QUANTIZED_FILE = "quantized.safetensors"
CODES = ".codes"
SCALES = ".scales"

_CONV1D = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
_HEAD = "lm_head.weight"
_OTHER_NAMES = {"embed_out.weight": _HEAD}
"""Names that files of GPT-NeoX have and its model hasn't."""
_EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class CodedTensor:
    """A weight as integers of 8 or 4 ``bits`` (-8..7) and the scale of each group of I / G columns.

    Shapes: codes_OI int8, whatever the bits; scales_OG float16, G = 1 for one scale per row.
    """

    codes_OI: NDArray[np.int8]
    scales_OG: NDArray[np.float16]
    bits: int = 8


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
        elif _EMBEDDING in self.names and _HEAD not in self.names:
            raise InputError(
                f"{_HEAD} is missing, and config.json doesn't tie it to the embeddings",
                where=str(directory),
                next_step='set "tie_word_embeddings": true if they are one tensor, or save the model again',
            )

    @property
    def names(self) -> list[str]:
        """Names of the tensors, sorted; a coded tensor counts as one."""
        keys = [key for key in self._file_of if not (self.quantized and key.endswith(SCALES))]
        return sorted(key.removesuffix(CODES) if self.quantized else key for key in keys)

    @property
    def scheme(self) -> Mapping[str, Any]:
        """The settings that a quantized directory was made with; empty for a plain one."""
        if not self.quantized:
            return {}
        with _opened(self.directory / QUANTIZED_FILE) as file:
            scheme: dict[str, Any] = json.loads((file.metadata() or {}).get("scheme", "{}"))
        return scheme

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor as Hugging Face has it, from the file's header alone."""
        if not self.is_coded(name):
            return self._stored(name)[0]
        (rows, columns), packed = self._stored(name + CODES)
        columns *= 2 if packed else 1
        return (columns, rows) if inputs_first(self.config, name) else (rows, columns)

    def is_coded(self, name: str) -> bool:
        """Whether the tensor is stored as codes and scales."""
        return self.quantized and name + CODES in self._file_of

    def read(self, name: str) -> Tensor:
        """A tensor in the dtype of the file; a coded one dequantized to float32."""
        if self.is_coded(name):
            weight = torch.from_numpy(dequantize(self.read_coded(name)))
            return weight.T.contiguous() if inputs_first(self.config, name) else weight
        return self._read(name)

    def read_coded(self, name: str) -> CodedTensor:
        """The codes and scales of a coded tensor, [O, I] in every family."""
        codes, scales_OG = self._read(name + CODES).numpy(), self._read(name + SCALES).numpy()
        if codes.dtype != np.uint8:
            return CodedTensor(codes, scales_OG)
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

    def _stored(self, key: str) -> tuple[tuple[int, ...], bool]:
        """The shape of an entry of the file, and whether its dtype is uint8."""
        with _opened(self._file_of[key]) as file:
            entry = file.get_slice(key)
            return tuple(entry.get_shape()), entry.get_dtype() == "U8"

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

    Returns: a transformers model in float32, in evaluation mode.
    Raises: InputError: the directory is damaged.
    """
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415 - others read weights without it

    weights = Weights(directory)
    state = {_OTHER_NAMES.get(name, name): weights.read(name).float() for name in weights.names}
    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    auto: Any = AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        model = auto.from_config(config, dtype=torch.float32)
    if weights.tied:
        table = model.get_input_embeddings().weight
        state[_HEAD] = next(state[name] for name, one in model.named_parameters() if one is table and name in state)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"doesn't hold the tensors of its config.json: {error}", where=str(directory)) from error
    return model.eval()


def _opened(path: Path) -> Any:  # noqa: ANN401 - safetensors' handle is untyped
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise InputError(f"is no safetensors file: {error}", where=str(path)) from error
