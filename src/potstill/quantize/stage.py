"""How does a model directory become a smaller one? Part by part: read, put on the scheme's grid, write."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.core import interrupt
from potstill.core.durable import canonical_json, write_json
from potstill.core.errors import InputError
from potstill.core.trace import Trace
from potstill.model.directory import TOKENIZER_FILES
from potstill.model.store import model_fingerprint
from potstill.model.weights import QUANTIZED_FILE, Weights, inputs_first, load_quantized
from potstill.quantize.calibration import CalibratedBlocks, CalibrationText
from potstill.quantize.encode import Encoded, encode, encode_coded, squares, to_float
from potstill.quantize.grids import require_finite
from potstill.quantize.methods import CODED, round_by_search
from potstill.quantize.parts import Part, WorkSoFar, parts_of
from potstill.quantize.placement import Grid, Placement, grid_of, is_matrix, placements
from potstill.quantize.sensitivity import SENSITIVITY_FILE, most_sensitive
from potstill.quantize.settings import Bfloat16, Calibrated, Float16, Keep, Scheme, calibration_of, keep_sensitive_of

__all__ = ["load_quantized", "quantize_model"]

_COMPANIONS = ("generation_config.json", *TOKENIZER_FILES)
_SHOWN = 8


def quantize_model(
    scheme: Scheme, model_dir: Path, out: Path, trace: Trace, text: CalibrationText | None = None
) -> None:
    """Write the model of ``model_dir`` to ``out`` in a scheme; what stands there already is overwritten.

    float16 and bfloat16 give an ordinary Hugging Face directory. The other schemes give config, tokenizer and
    ``quantized.safetensors``: embeddings and every linear weight as codes and scales (k-quants: as llama.cpp's blocks),
    norms and biases in float32, a tied embedding once. A calibrated method also writes ``calibration.json``: for each
    linear the tokens it saw, and what the method has to tell; with ``keep_sensitive`` there is also
    ``sensitivity.json``, what rounding each linear alone costs. No more than one block is in memory. Killed and called
    again, it goes on at the block it was at and ends in the same bytes.

    Raises: InputError: the source is damaged, already quantized, or holds a weight the scheme can't; a calibrated
    method has no text, or doesn't know the family.
    RecipeError: ``keep`` names a tensor that isn't there.
    """
    weights = Weights(model_dir)
    if weights.quantized:
        raise InputError("is quantized already", where=str(model_dir), next_step="quantize the model it was made from")
    placed = _placements(scheme, weights)
    out.mkdir(parents=True, exist_ok=True)
    for stale in out.glob(".*.partial"):
        stale.unlink()
    made_from = {"scheme": scheme.model_dump(mode="json"), "model": model_fingerprint(model_dir)}
    work = WorkSoFar(out, made_from | ({} if text is None else {"text": text.fingerprint}))
    method, sensitive = calibration_of(scheme), keep_sensitive_of(scheme)
    kept: list[Keep] = []
    if sensitive is not None:
        kept = most_sensitive(sensitive, weights, placed, _required(text, out), work, trace)
        placed = _placements(scheme, weights, kept)
    blocks = None if method is None else CalibratedBlocks(scheme, method, weights, _required(text, out), work)
    _tell_input(weights, trace)
    parts, told = parts_of(weights.names), []
    head = None if blocks is None else blocks.head
    parts.sort(key=lambda part: part.tensors == [head])  # it reads what the blocks make of the text, so it comes last
    for done, part in enumerate(parts, start=1):
        facts = work.facts(part)
        if facts is None:
            facts = _finish_part(part, placed, weights, work, method, blocks)
        for sentence in facts["fallbacks"]:
            trace.fallback(sentence)
        told.append(facts)
        trace.progress("quantize", done, len(parts), "parts")
    _write_directory(scheme, kept, weights, out, parts, work)
    if text is not None and method is not None:
        _write_calibration(out, text, told, trace)
    if sensitive is not None:
        shutil.copyfile(work.folder / SENSITIVITY_FILE, out / SENSITIVITY_FILE)
    _tell_output(scheme, weights, out, told, trace)
    work.remove()


def _finish_part(
    part: Part,
    placed: Mapping[str, Placement],
    weights: Weights,
    work: WorkSoFar,
    method: Calibrated | None,
    blocks: CalibratedBlocks | None,
) -> dict[str, Any]:
    """Quantize a part on the text where there is one and it can, else from its weights alone; what there is to tell."""
    if blocks is not None and part.block is not None:
        return blocks.quantize(part, placed)
    if blocks is not None and part.tensors == [blocks.head]:
        return blocks.quantize_head(part, placed)
    return _round_part(weights, part, placed, work, method)


def _required(text: CalibrationText | None, out: Path) -> CalibrationText:
    if text is None:
        raise InputError("there is no text to calibrate on", where=str(out), next_step="give a text, or method: rtn")
    return text


def _write_calibration(out: Path, text: CalibrationText, told: Sequence[Mapping[str, Any]], trace: Trace) -> None:
    """What each linear saw, in the artefact and, worst first, in the trace."""
    linears = {name: facts for part in told for name, facts in part.get("linears", {}).items()}
    write_json(out / "calibration.json", {"tokens": text.num_tokens, "linears": linears})
    tokens = [facts["tokens"] for facts in linears.values()]
    trace.metric("calibration_tokens", min(tokens, default=0), "tokens", linears=len(linears))
    rows = [{"linear": name, **facts} for name, facts in linears.items()]
    worst = sorted(rows, key=lambda row: -row.get("output_error_relative", 0.0))[:_SHOWN]
    trace.table("linears with the largest error of their outputs", worst)


def _placements(scheme: Scheme, weights: Weights, kept: Sequence[Keep] = ()) -> Mapping[str, Placement]:
    """Every tensor's placement: in the two-byte schemes all tensors alike, else matrices on the grid."""
    if isinstance(scheme, Float16 | Bfloat16):
        return dict.fromkeys(weights.names, Placement(grid_of(scheme)))
    shapes = {name: weights.shape(name) for name in weights.names}
    columns = {
        name: shape[0 if inputs_first(weights.config, name) else 1]
        for name, shape in shapes.items()
        if is_matrix(name, shape)
    }
    rest = dict.fromkeys(shapes.keys() - columns.keys(), Placement(Grid("float32")))
    return placements(scheme, columns, where=str(weights.directory), also=kept) | rest


def _round_part(
    weights: Weights, part: Part, placed: Mapping[str, Placement], work: WorkSoFar, method: Calibrated | None
) -> dict[str, Any]:
    """Round the tensors of a part without text and write them; returns what there is to tell."""
    entries: dict[str, Tensor] = {}
    error, total = 0.0, 0.0
    for name in part.tensors:
        interrupt.check()
        exact = weights.read(name).float().contiguous().numpy()
        encoded = _encode(weights, name, exact, placed[name].grid, search=method is not None)
        entries |= encoded.entries
        if exact.ndim == 2:
            missed, size = squares(exact, encoded.back)
            error, total = error + missed, total + size
    fallbacks = [text for name in part.tensors if (text := placed[name].fallback)]
    return work.finish(part, entries, {"error": error, "total": total, "fallbacks": fallbacks})


def _encode(weights: Weights, name: str, exact: NDArray[np.float32], grid: Grid, *, search: bool) -> Encoded:
    """Round to nearest; beside a calibrated method, search scales by the error of the weights themselves."""
    if search and grid.name in CODED and not inputs_first(weights.config, name):
        require_finite(exact, name)
        return encode_coded(name, round_by_search(torch.from_numpy(exact), grid, None))
    if exact.ndim != 2 or grid.name in {"float32", "float16", "bfloat16"}:
        return to_float(name, exact, grid)
    if not inputs_first(weights.config, name):
        return encode(name, exact, grid)
    encoded = encode(name, np.ascontiguousarray(exact.T), grid)
    return Encoded(encoded.entries, encoded.back.T)


def _write_directory(
    scheme: Scheme, kept: Sequence[Keep], weights: Weights, out: Path, parts: Sequence[Part], work: WorkSoFar
) -> None:
    """The scheme in the file names under ``keep`` also what was chosen by measurement."""
    plain = isinstance(scheme, Float16 | Bfloat16)
    if kept:
        scheme = scheme.model_copy(update={"keep": (*getattr(scheme, "keep", ()), *kept)})
    metadata = {"format": "pt"} if plain else {"scheme": canonical_json(scheme.model_dump(mode="json"))}
    work.put_together(parts, out / ("model.safetensors" if plain else QUANTIZED_FILE), metadata)
    config = dict(weights.config)
    if plain:
        config = {key: value for key, value in config.items() if key != "torch_dtype"} | {"dtype": scheme.scheme}
    write_json(out / "config.json", config)
    for name in _COMPANIONS:
        if (weights.directory / name).is_file():
            shutil.copyfile(weights.directory / name, out / name)


def _tell_input(weights: Weights, trace: Trace) -> None:
    name = _shown_tensor(weights)
    source = weights.read(name)
    trace.input(
        "weights",
        shape=[weights.num_parameters()],
        dtype=str(source.dtype).removeprefix("torch."),
        example={"tensor": name, "first": source.flatten()[:_SHOWN].tolist()},
    )


def _tell_output(scheme: Scheme, source: Weights, out: Path, told: Sequence[Mapping[str, Any]], trace: Trace) -> None:
    made = Weights(out)
    trace.metric("weights_bytes_before", source.num_bytes(), "bytes")
    trace.metric("weights_bytes_after", made.num_bytes(), "bytes")
    error, total = (sum(facts[key] for facts in told) for key in ("error", "total"))
    trace.metric("weight_error_relative", (error / total) ** 0.5 if total else 0.0, "share")
    name = _shown_tensor(source)
    shape = list(source.shape(name))
    if made.is_coded(name):
        coded = made.read_coded(name)
        codes, scale = coded.codes_OI.flatten()[:_SHOWN].tolist(), float(coded.scales_OG.flatten()[0])
        example = {"tensor": name, "first": codes}
        trace.output("codes", shape=shape, dtype=f"int{coded.bits}", example=example)
        example = {"tensor": name, "first": scale, "first_weights_back": [code * scale for code in codes]}
        trace.output("scales", shape=list(coded.scales_OG.shape), dtype="float16", example=example)
    else:
        values = made.read(name).float().flatten()[:_SHOWN].tolist()
        dtype = made.blocks_grid(name) or scheme.scheme
        trace.output("weights", shape=shape, dtype=dtype, example={"tensor": name, "first": values})


def _shown_tensor(weights: Weights) -> str:
    """The tensor that examples are taken from: the first matrix."""
    return next((name for name in weights.names if len(weights.shape(name)) == 2), weights.names[0])
