"""``potstill quantize MODEL``: from options to settings. What is heavy is imported inside."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["quantize_of_options"]

Scheme = Annotated[
    str,
    typer.Option("--scheme", help="float16, bfloat16, int8, int8-channel, int4, q3_k or q2_k.", show_default=False),
]
Group = Annotated[int | None, typer.Option("--group", help="Columns that share a scale: 32 or 128.")]
Method = Annotated[str | None, typer.Option("--method", help="rtn, search, gptq, awq or smoothquant; rtn unless told.")]
Keep = Annotated[
    list[str] | None,
    typer.Option("--keep", metavar="PATTERN", help="Matrices that stay float16, by name; may be repeated."),
]
KeepSensitive = Annotated[
    int | None,
    typer.Option("--keep-sensitive", metavar="N", min=1, help="Keep the N linears that suffer most, in float16."),
]
Format = Annotated[
    str, typer.Option("--format", help="File formats, with commas between: gguf, onnx, openvino, compressed-tensors.")
]
Data = Annotated[
    list[str] | None, typer.Option("--data", metavar="FILE", help="Text to calibrate on; may be repeated.")
]
CalibrationTokens = Annotated[int | None, typer.Option("--calibration-tokens", min=1, help="How much of it.")]


def quantize_of_options(
    model: str,
    options: Mapping[str, Any],
    out: Path | None,
    require_nothing_told: Callable[[Mapping[str, Any], Path], None] | None,
) -> dict[str, Any]:
    """Quantize and export as the options say; ``require_nothing_told`` is what ``--strict`` adds.

    Raises: RecipeError: options that contradict each other or name what doesn't exist.
    """
    from potstill.core.settings import parse_settings  # noqa: PLC0415 - see the module's docstring
    from potstill.one_model import QuantizeSettings, quantize_one_model  # noqa: PLC0415
    from potstill.terminal import listening  # noqa: PLC0415
    from potstill.variants import variant_path  # noqa: PLC0415

    settings = parse_settings(QuantizeSettings, _settings_of(options), source="potstill quantize")
    path = variant_path(model, of_config=True)
    directory = out or Path(f"{(path or Path(model)).name}-{options['scheme']}")
    with listening(sys.stderr) as listener:
        summary = quantize_one_model(settings, path or model, directory, listeners=[listener])
    if require_nothing_told is not None:
        require_nothing_told(summary, directory)
    return summary


def _settings_of(options: Mapping[str, Any]) -> dict[str, Any]:
    scheme: dict[str, Any] = {"scheme": options["scheme"]}
    if options["group"] is not None:
        scheme["group"] = options["group"]
    if options["keep"]:
        scheme["keep"] = options["keep"]
    if options["keep_sensitive"] is not None:
        scheme["keep_sensitive"] = options["keep_sensitive"]
    tokens = options["calibration_tokens"]
    if options["method"] is not None or tokens is not None:
        method = {"kind": options["method"] or "rtn"}
        scheme["method"] = method if tokens is None else method | {"calibration_tokens": tokens}
    formats = [{"format": name.strip()} for name in options["format"].split(",") if name.strip()]
    data = {"kind": "files", "paths": options["data"]} if options["data"] else None
    return {"scheme": scheme, "export": formats, "data": data}
