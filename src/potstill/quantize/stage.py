"""How does a model directory become a smaller one? Reads tensors one by one, puts them on the scheme's grid, writes.

Shapes: O rows (outputs) of a weight, I columns (inputs), G groups of columns that share a scale.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from potstill.core import interrupt
from potstill.core.durable import canonical_json, replacing, write_json
from potstill.core.errors import InputError
from potstill.core.trace import Trace
from potstill.model.directory import TOKENIZER_FILES
from potstill.model.weights import CODES, QUANTIZED_FILE, SCALES, Weights, load_quantized
from potstill.quantize.grids import dequantize, quantize_int8, to_float16
from potstill.quantize.settings import Float16, Int8

__all__ = ["load_quantized", "quantize_model"]

_COMPANIONS = ("generation_config.json", *TOKENIZER_FILES)
_SHOWN = 8


def quantize_model(scheme: Float16 | Int8, model_dir: Path, out: Path, trace: Trace) -> None:
    """Write the model of ``model_dir`` to ``out`` in a scheme; what stands there already is overwritten.

    float16 gives an ordinary Hugging Face directory. int8 gives config, tokenizer and ``quantized.safetensors``:
    embeddings and every linear weight as codes and scales, norms and biases in float32, a tied embedding once.

    Raises: InputError: the source is damaged, already quantized, or holds a weight the scheme can't.
    """
    weights = Weights(model_dir)
    if weights.quantized:
        raise InputError("is quantized already", where=str(model_dir), next_step="quantize the model it was made from")
    out.mkdir(parents=True, exist_ok=True)
    for stale in out.glob(".*.partial"):
        stale.unlink()
    _WRITERS[type(scheme)](scheme, weights, out, trace)
    for name in _COMPANIONS:
        if (model_dir / name).is_file():
            shutil.copyfile(model_dir / name, out / name)


def _write_float16(_scheme: Float16, weights: Weights, out: Path, trace: Trace) -> None:
    tensors: dict[str, Tensor] = {}
    error = _RelativeError()
    for name in _announced(weights, trace):
        exact = _float32(weights, name)
        half = to_float16(exact, name=name)
        error.add(exact, half.astype(np.float32))
        tensors[name] = torch.from_numpy(half)
    _save(tensors, out / "model.safetensors", "format", "pt")
    config = {key: value for key, value in weights.config.items() if key != "torch_dtype"}
    write_json(out / "config.json", config | {"dtype": "float16"})
    _report(weights, out / "model.safetensors", error, trace)
    name = _shown_tensor(weights)
    values = tensors[name].flatten()[:_SHOWN].tolist()
    trace.output(
        "weights", shape=[weights.num_parameters()], dtype="float16", example={"tensor": name, "first": values}
    )


def _write_int8(scheme: Int8, weights: Weights, out: Path, trace: Trace) -> None:
    tensors: dict[str, Tensor] = {}
    error = _RelativeError()
    for name in _announced(weights, trace):
        exact = _float32(weights, name)
        if exact.ndim != 2:
            tensors[name] = torch.from_numpy(exact)
        elif exact.shape[1] % scheme.group:
            trace.fallback(
                f"{name} has {exact.shape[1]} columns, no multiple of {scheme.group}: kept in float16 instead of int8"
            )
            half = to_float16(exact, name=name)
            error.add(exact, half.astype(np.float32))
            tensors[name] = torch.from_numpy(half)
        else:
            coded = quantize_int8(exact, scheme.group, name=name)
            error.add(exact, dequantize(coded))
            tensors[name + CODES] = torch.from_numpy(coded.codes_OI)
            tensors[name + SCALES] = torch.from_numpy(coded.scales_OG)
    _save(tensors, out / QUANTIZED_FILE, "scheme", canonical_json(scheme.model_dump()))
    write_json(out / "config.json", weights.config)
    _report(weights, out / QUANTIZED_FILE, error, trace)
    name = _shown_tensor(weights)
    if name + CODES in tensors:
        codes, scale = tensors[name + CODES].flatten()[:_SHOWN].tolist(), float(tensors[name + SCALES].flatten()[0])
        trace.output("codes", shape=list(weights.shape(name)), dtype="int8", example={"tensor": name, "first": codes})
        trace.output(
            "scales",
            shape=list(tensors[name + SCALES].shape),
            dtype="float16",
            example={"tensor": name, "first": scale, "first_weights_back": [code * scale for code in codes]},
        )


_WRITERS: Mapping[type, Callable[[Any, Weights, Path, Trace], None]] = MappingProxyType(
    {Float16: _write_float16, Int8: _write_int8}
)


class _RelativeError:
    """Root of sum (w' - w)^2 / sum w^2 over the tensors added."""

    def __init__(self) -> None:
        self._error = 0.0
        self._total = 0.0

    def add(self, exact: NDArray[np.float32], rounded: NDArray[np.float32]) -> None:
        self._error += float(np.square(rounded.astype(np.float64) - exact).sum())
        self._total += float(np.square(exact.astype(np.float64)).sum())

    def value(self) -> float:
        return (self._error / self._total) ** 0.5 if self._total else 0.0


def _announced(weights: Weights, trace: Trace) -> list[str]:
    """Names of the tensors, after telling the trace what comes in."""
    name = _shown_tensor(weights)
    source = weights.read(name)
    trace.input(
        "weights",
        shape=[weights.num_parameters()],
        dtype=str(source.dtype).removeprefix("torch."),
        example={"tensor": name, "first": source.flatten()[:_SHOWN].tolist()},
    )
    return weights.names


def _shown_tensor(weights: Weights) -> str:
    """The tensor that examples are taken from: the first matrix."""
    return next((name for name in weights.names if len(weights.shape(name)) == 2), weights.names[0])


def _float32(weights: Weights, name: str) -> NDArray[np.float32]:
    interrupt.check()
    array: NDArray[np.float32] = weights.read(name).float().contiguous().numpy()
    return array


def _save(tensors: dict[str, Tensor], path: Path, key: str, value: str) -> None:
    """One key of metadata only: safetensors writes several in an order that changes from process to process."""
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={key: value})


def _report(weights: Weights, written: Path, error: _RelativeError, trace: Trace) -> None:
    trace.metric("weights_bytes_before", weights.num_bytes(), "bytes")
    trace.metric("weights_bytes_after", written.stat().st_size, "bytes")
    trace.metric("weight_error_relative", error.value(), "share")
