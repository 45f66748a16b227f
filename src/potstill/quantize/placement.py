"""Which grid does each tensor of a model go on? Decided from names and shapes alone, before any weight is read.

Matrices go on the scheme's grid: linears, embeddings, output head. Vectors and tables of positions stay float32.

Shapes: O rows (outputs) of a weight, I columns (inputs).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Literal

from potstill.core.errors import RecipeError
from potstill.quantize.settings import Int4, Keep, Scheme, label_of

__all__ = ["Grid", "Placement", "grid_of", "is_matrix", "placements"]

GridName = Literal["float32", "float16", "bfloat16", "int8", "int4", "q3_k", "q2_k"]
_POSITIONS = ("*wpe.weight", "*embed_positions.weight", "*position_embeddings.weight")
_SHOWN = 3


@dataclass(frozen=True)
class Grid:
    """The values that weights can take: a name, and how many columns share a scale (None: the whole row)."""

    name: GridName
    group: int | None = None

    def holds(self, columns: int) -> bool:
        """Whether a row of so many columns divides into groups."""
        return self.group is None or columns % self.group == 0

    def __str__(self) -> str:
        return self.name if self.group is None else f"{self.name} in groups of {self.group}"


@dataclass(frozen=True)
class Placement:
    """A tensor's grid, and a sentence where that isn't the one that the scheme asks for."""

    grid: Grid
    fallback: str | None = None


_FLOAT32, _FLOAT16, _INT4 = Grid("float32"), Grid("float16"), Grid("int4", 32)
_GRIDS: Mapping[str, Grid] = MappingProxyType(
    {
        "float16": _FLOAT16,
        "bfloat16": Grid("bfloat16"),
        "int8": Grid("int8", 32),
        "int8-channel": Grid("int8"),
        "q3_k": Grid("q3_k", 256),
        "q2_k": Grid("q2_k", 256),
    }
)


def grid_of(scheme: Scheme) -> Grid:
    """The grid that a scheme puts matrices on."""
    return Grid("int4", scheme.group) if isinstance(scheme, Int4) else _GRIDS[scheme.scheme]


def is_matrix(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor is one that schemes with codes quantize."""
    return len(shape) == 2 and not any(fnmatchcase(name, pattern) for pattern in _POSITIONS)


def placements(
    scheme: Scheme, columns_of: Mapping[str, int], *, where: str, also: Sequence[Keep] = ()
) -> dict[str, Placement]:
    """The placement of every matrix; ``columns_of`` maps its name to I.

    A pattern of ``keep`` that stands earlier goes first, those of ``also`` last.

    Raises: RecipeError: a pattern of ``keep`` matches no matrix.
    """
    keep: tuple[Keep, ...] = (*getattr(scheme, "keep", ()), *also)
    for entry in keep:
        if not any(fnmatchcase(name, entry.tensors) for name in columns_of):
            there = ", ".join(list(columns_of)[:_SHOWN])
            raise RecipeError(
                f"keep: {entry.tensors!r} matches no matrix of this model",
                where=where,
                next_step=f"its matrices are {there}, ... ; a tied head is kept by the name of its embedding",
            )
    return {name: _placement(scheme, name, columns, keep) for name, columns in columns_of.items()}


def _placement(scheme: Scheme, name: str, columns: int, keep: Sequence[Keep]) -> Placement:
    kept = next((entry for entry in keep if fnmatchcase(name, entry.tensors)), None)
    wanted = _GRIDS[kept.dtype] if kept else grid_of(scheme)
    coarser = (wanted, _INT4, _FLOAT16) if wanted.name in {"int4", "q3_k", "q2_k"} else (wanted, _FLOAT16)
    grid = next(candidate for candidate in coarser if candidate.holds(columns))
    if grid == wanted:
        return Placement(grid)
    return Placement(
        grid,
        f"{name} has {columns} columns, no multiple of {wanted.group}: kept in {grid} instead of {label_of(scheme)}",
    )
