"""Which file does each variant of each model become?"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from potstill.core.errors import BugError
from potstill.core.trace import Trace
from potstill.export.gguf import export_gguf
from potstill.export.settings import DTYPES, Dtype, Export, GgufExport

__all__ = ["bytes_by_dtype", "export_variants"]

_EXPORTERS: Mapping[type, tuple[str, Callable[[Path, Path, Dtype, Trace], None]]] = MappingProxyType(
    {GgufExport: (".gguf", export_gguf)}
)
"""Settings type → the file's suffix and what writes it."""


def export_variants(formats: Sequence[Export], variants: Mapping[str, Path], out: Path, trace: Trace) -> None:
    """Write every variant in every format, as ``out/NAME.SUFFIX``.

    ``variants`` maps a name, a model's and its scheme's label ("student-int4-g128"), to a model directory. Files that a
    killed try left half-written are removed.

    Raises: InputError: a model that the format can't carry.
    """
    for stale in out.glob(".*.partial"):
        stale.unlink()
    for settings in formats:
        suffix, export = _EXPORTERS[type(settings)]
        for name, source in variants.items():
            export(source, out / f"{name}{suffix}", _dtype_of(name), trace)
        trace.table(f"bytes_by_dtype{suffix}", bytes_by_dtype({name: out / f"{name}{suffix}" for name in variants}))


def bytes_by_dtype(files: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Rows of name, dtype and size of each file, and its share of the float32 file of the same model if there is one.

    Units: bytes on disk, tokenizer and metadata included.
    """
    sizes = {name: path.stat().st_size for name, path in files.items()}
    rows = []
    for name, size in sizes.items():
        model, _, label = name.partition("-")
        whole = sizes.get(f"{model}-float32")
        share = size / whole if whole else None
        rows.append({"model": model, "dtype": label, "bytes": size, "share_of_float32": share})
    return rows


def _dtype_of(name: str) -> Dtype:
    dtype = name.partition("-")[2].partition("-")[0]
    if dtype not in DTYPES:
        raise BugError(f"has no dtype of {', '.join(DTYPES)} after its model", where=f"variant {name!r}")
    return dtype
