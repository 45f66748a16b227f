"""Artefacts: directories that say what they are, what made them, and that they are whole.

A directory is an artefact once ``manifest.json`` stands in it, and that file is written last. The *fingerprint* names
what an artefact is made from: stage kind, settings, the fingerprints of its inputs, and the stage's code version.
"""

import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from potstill.core.durable import canonical_json, read_json, sha256_of_file, write_json
from potstill.core.errors import InputError

__all__ = ["MANIFEST", "Manifest", "fingerprint_of", "read_manifest", "seal", "verify_files"]

MANIFEST = "manifest.json"
_LIBRARIES = (
    "potstill",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "gguf",
    "xllamacpp",
    "onnx",
    "openvino",
)


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says.

    ``files`` maps a path relative to the directory to ``{"sha256": str, "bytes": int}``.
    """

    kind: str
    fingerprint: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    files: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, str]
    started: str
    ended: str
    seconds: float
    peak_memory_bytes: int


def fingerprint_of(kind: str, settings: Mapping[str, Any], inputs: Mapping[str, str], code_version: int) -> str:
    """Hexadecimal sha256 of what an artefact is made from; ``inputs`` maps a role to a fingerprint."""
    material = canonical_json([kind, settings, inputs, code_version])
    return hashlib.sha256(material.encode()).hexdigest()


def seal(  # noqa: PLR0913 - one argument per fact of the manifest
    directory: Path,
    *,
    kind: str,
    fingerprint: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    started: datetime,
    seconds: float,
    peak_memory_bytes: int,
    leave_out: Sequence[str] = (),
) -> Manifest:
    """Write the manifest of a finished directory, which makes it an artefact.

    ``leave_out`` names files or folders at the top that are not part of it (a stage's checkpoints).
    """
    files = {
        path.relative_to(directory).as_posix(): {"sha256": sha256_of_file(path), "bytes": path.stat().st_size}
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.relative_to(directory).parts[0] not in {MANIFEST, *leave_out}
    }
    manifest = Manifest(
        kind=kind,
        fingerprint=fingerprint,
        settings=settings,
        inputs=inputs,
        files=files,
        versions={name: _version(name) for name in _LIBRARIES},
        started=started.astimezone(UTC).isoformat(timespec="seconds"),
        ended=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
        peak_memory_bytes=peak_memory_bytes,
    )
    write_json(directory / MANIFEST, vars(manifest))
    return manifest


def read_manifest(directory: Path) -> Manifest | None:
    """Read a directory's manifest; None where there is none, which means: no artefact.

    Raises: InputError: the manifest is damaged.
    """
    path = directory / MANIFEST
    if not path.exists():
        return None
    try:
        return Manifest(**read_json(path))
    except TypeError as error:
        raise InputError(f"is not a manifest of this version: {error}", where=str(path)) from error


def verify_files(directory: Path, manifest: Manifest, *, contents: bool) -> None:
    """Check that every file of the manifest is there with its size, and with ``contents`` its sha256 too.

    Raises: InputError: naming the first file that is missing or differs.
    """
    for name, facts in manifest.files.items():
        path = directory / name
        if not path.is_file():
            raise InputError("is missing from its artefact", where=str(path), next_step=_REMAKE)
        if path.stat().st_size != facts["bytes"]:
            what = f"has {path.stat().st_size:,} bytes where its manifest says {facts['bytes']:,}"
            raise InputError(what, where=str(path), next_step=_REMAKE)
        if contents and sha256_of_file(path) != facts["sha256"]:
            raise InputError("has other bytes than its manifest says", where=str(path), next_step=_REMAKE)


_REMAKE = "delete the stage's directory; the next run makes it again"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
