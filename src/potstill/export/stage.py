"""Which file does each variant of each model become?"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from potstill.core.errors import BugError, ResourceError
from potstill.core.extras import needing
from potstill.core.trace import Trace
from potstill.export.folder import folder_bytes
from potstill.export.settings import (
    DTYPES,
    CompressedTensorsExport,
    Dtype,
    Export,
    GgufExport,
    OnnxExport,
    OpenvinoExport,
)

__all__ = ["bytes_by_dtype", "check_exports", "export_variants"]


def _gguf(_settings: GgufExport, source: Path, out: Path, label: str, trace: Trace) -> None:
    from potstill.export.gguf import export_gguf  # noqa: PLC0415 - each writer only when used

    export_gguf(source, out, _dtype_of(label), trace)


def _onnx(settings: OnnxExport, source: Path, out: Path, label: str, trace: Trace) -> None:
    with needing("onnx", "onnx"):
        from potstill.export.onnx import export_onnx  # noqa: PLC0415 - an extra
    export_onnx(settings, source, out, label, trace)


def _openvino(settings: OpenvinoExport, source: Path, out: Path, label: str, trace: Trace) -> None:
    with needing("openvino", "openvino"):
        from potstill.export.openvino import export_openvino  # noqa: PLC0415 - an extra
    export_openvino(settings, source, out, label, trace)


def _compressed_tensors(settings: CompressedTensorsExport, source: Path, out: Path, label: str, trace: Trace) -> None:
    from potstill.export.compressed_tensors import export_compressed_tensors  # noqa: PLC0415 - only when used

    export_compressed_tensors(settings, source, out, label, trace)


_EXPORTERS: Mapping[type, Callable[[Any, Path, Path, str, Trace], None]] = MappingProxyType(
    {GgufExport: _gguf, OnnxExport: _onnx, OpenvinoExport: _openvino, CompressedTensorsExport: _compressed_tensors}
)
"""Settings type → what writes it."""


_PACKAGES: Mapping[type, str] = MappingProxyType({OnnxExport: "onnx", OpenvinoExport: "openvino"})
"""Settings type → the package that its writer needs, which is also the name of the extra."""


def check_exports(formats: Sequence[Export], config: Mapping[str, Any] | None = None, where: str = "") -> None:
    """Fail before any work where a format can't be written here, or can't carry the model of a config.

    Raises: ResourceError: an extra isn't installed. InputError: the family, or a variation of it, isn't known.
    """
    for settings in formats:
        package = _PACKAGES.get(type(settings))
        if package is not None and find_spec(package) is None:
            raise ResourceError(
                f"format {settings.format} needs it, and it isn't installed",
                where=package,
                next_step=f"pip install 'potstill[{package}]'",
            )
        if config is not None:
            from potstill.export.families import decoder_facts  # noqa: PLC0415 - only where there is a model to look at
            from potstill.export.llama_layout import gguf_facts  # noqa: PLC0415

            (gguf_facts if isinstance(settings, GgufExport) else decoder_facts)(config, where)


def export_variants(formats: Sequence[Export], variants: Mapping[str, Path], out: Path, trace: Trace) -> None:
    """Write every variant in every format, as ``out/NAME.FORMAT``: a file or a folder.

    ``variants`` maps a base and its scheme's label ("student-int4-g128") to a model directory. What a killed try left
    half-written is removed.

    Raises: InputError: a model that the format can't carry. ResourceError: the extra that writes it isn't installed.
    """
    for stale in out.glob(".*.partial"):
        if stale.is_dir():
            shutil.rmtree(stale)
        else:
            stale.unlink()
    for settings in formats:
        export = _EXPORTERS[type(settings)]
        for name, source in variants.items():
            told = trace.about(variant=name, format=settings.format)
            export(settings, source, out / f"{name}.{settings.format}", name.partition("-")[2], told)
        files = {name: out / f"{name}.{settings.format}" for name in variants}
        trace.table(f"bytes_by_dtype.{settings.format}", bytes_by_dtype(files))


def bytes_by_dtype(files: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Rows of name, dtype and size of each file, and its share of the float32 file of the same model if there is one.

    Units: bytes on disk, tokenizer and metadata included.
    """
    sizes = {name: folder_bytes(path) if path.is_dir() else path.stat().st_size for name, path in files.items()}
    rows = []
    for name, size in sizes.items():
        model, _, label = name.partition("-")
        whole = sizes.get(f"{model}-float32")
        share = size / whole if whole else None
        rows.append({"model": model, "dtype": label, "bytes": size, "share_of_float32": share})
    return rows


def _dtype_of(label: str) -> Dtype:
    dtype = label.partition("-")[0]
    if dtype not in DTYPES:
        raise BugError(f"begins with no dtype of {', '.join(DTYPES)}", where=f"variant {label!r}")
    return dtype
