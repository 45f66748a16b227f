"""Which path a MODEL of the command line means: a path itself, or a run directory's variant, ``RUN:student-int8``.

A variant is looked for by the names of the stages, so a run without pruning is read like one with it.
"""

from pathlib import Path

from potstill.core.errors import InputError
from potstill.core.formats import FORMATS

__all__ = ["locate_run", "variant_path"]

_MODEL_STAGES = {
    "teacher": "teacher/model",
    "student": "student/model",
    "twin": "student/twin/model",
    "twin-long": "student/twin-long/model",
    "pruned": "prune/model",
}


def locate_run(name: str) -> Path:
    """The run directory that ``name`` means: a path, or a name under runs/.

    Raises: InputError: there is no such directory.
    """
    for candidate in (Path(name), Path("runs") / name):
        if candidate.is_dir():
            return candidate
    runs = ", ".join(sorted(path.name for path in Path("runs").glob("*/"))) or "none yet"
    raise InputError("is no run directory", where=name, next_step=f"runs here: {runs}")


def variant_path(name: str, *, of_config: bool = False) -> Path | None:
    """What ``RUN:VARIANT`` means: a model's directory, or its GGUF file unless ``of_config`` asks for a config.

    None for a ``name`` that is no such pair, or that names a path as it stands.

    Raises: InputError: there is no such run, or it has no such variant.
    """
    run_name, colon, variant = name.rpartition(":")
    if not colon or Path(name).exists():
        return None
    directory = locate_run(run_name)
    variants = _directories_of(directory) | ({} if of_config else _files_of(directory))
    if variant not in variants:
        there = ", ".join(variants) or "none yet"
        raise InputError(f"has no variant {variant!r}", where=str(directory), next_step=f"it has: {there}")
    return variants[variant]


def _directories_of(run_directory: Path) -> dict[str, Path]:
    stages = run_directory / "stages"
    named = {name: path for name, place in _MODEL_STAGES.items() for path in stages.glob(f"[0-9]*-{place}")}
    quantized = sorted(path.parent for path in stages.glob("[0-9]*-quantize/*/config.json"))
    return named | {path.name: path for path in quantized}


def _files_of(run_directory: Path) -> dict[str, Path]:
    """Exported files and folders, by their whole name, and by the name before the format for the first of FORMATS.

    What runs is the file, so it goes before a directory.
    """
    files = [path for format_ in FORMATS for path in sorted(run_directory.glob(f"stages/[0-9]*-export/*.{format_}"))]
    return {path.stem: path for path in reversed(files)} | {path.name: path for path in files}
