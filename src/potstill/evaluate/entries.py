"""What is there to evaluate in a run? Models and files, each with the model that it was made from."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from potstill.core.errors import InputError
from potstill.core.formats import FORMATS

__all__ = ["Entry", "find_entries"]

_DTYPES = ("float32", "bfloat16", "float16", "int8", "int4", "q3_k", "q2_k")
"""The order of the table; other labels of a dtype ("int8-channel") come after it, dtypes that aren't here last."""


@dataclass(frozen=True)
class Entry:
    """A model directory or a file. ``name`` is what its row is called; a model and its float32 file share one.

    ``base`` is the key of the model that it was made from, its own key where it wasn't.
    """

    name: str
    path: Path
    base: str

    @property
    def key(self) -> str:
        """Tells the models and files of one name apart."""
        return self.name if self.format is None else f"{self.name} ({self.format})"

    @property
    def format(self) -> str | None:
        """What it was exported to; None for a model directory."""
        ending = self.path.suffix.removeprefix(".")
        return ending if ending in FORMATS else None


def find_entries(inputs: Mapping[str, Path]) -> list[Entry]:
    """Everything to evaluate, in the table's order: a model, then what was made from it, then the next model.

    Reads: teacher, student (and the twins beside it), pruned, quantize, export; all but the student may be absent. A
    quantized directory is an entry only where no file was exported from it: the file is what runs.
    Raises: InputError: there is no student.
    """
    models = {base: inputs[base] / "model" for base in ("teacher", "student", "pruned") if base in inputs}
    if "student" in inputs:
        models |= {twin: inputs["student"] / twin / "model" for twin in ("twin", "twin-long")}
    entries: list[Entry] = []
    for base in ("teacher", "student", "twin", "twin-long", "pruned"):
        if base in models and (models[base] / "config.json").is_file():
            entries += [Entry(base, models[base], base), *_made_from(base, inputs)]
    if not any(entry.key == "student" for entry in entries):
        where = str(inputs["student"]) if "student" in inputs else None
        raise InputError("there is no student's model to evaluate", where=where)
    return entries


def _made_from(base: str, inputs: Mapping[str, Path]) -> Iterator[Entry]:
    """The files and quantized directories named ``BASE-LABEL``, largest dtype first, formats in their own order."""
    made: dict[str, list[Path]] = {}
    for format_ in FORMATS if "export" in inputs else ():
        for path in sorted(inputs["export"].glob(f"{base}-*.{format_}")):
            made.setdefault(path.stem.removeprefix(f"{base}-"), []).append(path)
    for path in sorted(inputs["quantize"].glob(f"{base}-*")) if "quantize" in inputs else ():
        if (path / "config.json").is_file():
            made.setdefault(path.name.removeprefix(f"{base}-"), [path])
    for label in sorted(made, key=_place):
        for path in made[label]:
            yield Entry(base if label == "float32" else f"{base}-{label}", path, base)


def _place(label: str) -> tuple[int, str]:
    dtype = label.partition("-")[0]
    return (_DTYPES.index(dtype) if dtype in _DTYPES else len(_DTYPES), label)
