"""Which path a MODEL of the command line means: a path itself, or a run directory's variant, ``RUN:student-int8``.

A variant is looked for by the names of the stages, so a run without pruning is read like one with it.
"""

from collections.abc import Mapping
from pathlib import Path

from potstill.core.errors import InputError

__all__ = ["locate_model", "locate_run", "variants_of"]

_MODEL_STAGES = {
    "teacher": "teacher/model",
    "student": "student/model",
    "twin": "student/twin/model",
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


def locate_model(name: str) -> Path:
    """The model directory or file that ``name`` means.

    Raises: InputError: there is no such path, run or variant.
    """
    if Path(name).exists():
        return Path(name)
    run_name, colon, variant = name.rpartition(":")
    if not colon:
        raise InputError("there is no such file or directory", where=name, next_step="name a variant as RUN:student")
    variants = variants_of(locate_run(run_name))
    if variant not in variants:
        raise InputError(f"has no variant {variant!r}", where=run_name, next_step=f"it has: {', '.join(variants)}")
    return variants[variant]


def variants_of(run_directory: Path) -> Mapping[str, Path]:
    """Every model of a run by name; a quantized one means its GGUF file where there is one, for that is what runs."""
    stages = run_directory / "stages"
    found = {name: path for name, place in _MODEL_STAGES.items() for path in sorted(stages.glob(f"[0-9]*-{place}"))}
    found |= {path.name: path for path in sorted(stages.glob("[0-9]*-quantize/*")) if (path / "config.json").is_file()}
    files = sorted(stages.glob("[0-9]*-export/*.gguf"))
    found |= {path.stem: path for path in files} | {path.name: path for path in files}
    return found
