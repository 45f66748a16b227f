"""Which shape should a model of so many parameters have? Answered without importing torch.

Depth follows width as practice has found it: 4 blocks at width 128, 8 at 256, 14 at 768, 32 at 4096.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from potstill.core.errors import RecipeError

__all__ = ["LlamaShape", "shape_for_budget", "smallest_shape"]

TOLERANCE = 0.03
"""How far from its budget a model may be, as a share of the budget, where the grid of shapes reaches that near."""

_MLP_PER_WIDTH = 8 / 3
_COLUMNS = 32
_MAX_WIDTH = 32_768


@dataclass(frozen=True)
class LlamaShape:
    """The sizes that fix a Llama: width is its hidden size, mlp_width the MLP's, heads those of attention."""

    blocks: int
    width: int
    mlp_width: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = True

    @property
    def head_width(self) -> int:
        """Columns of one attention head."""
        return self.width // self.heads

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the token embeddings, and of the output head where it isn't tied to them."""
        return self.vocabulary * self.width * (1 if self.tied else 2)

    @property
    def block_parameters(self) -> int:
        """Parameters of one block: attention, MLP, two norms."""
        attention = 2 * self.width * self.head_width * (self.heads + self.kv_heads)
        return attention + 3 * self.width * self.mlp_width + 2 * self.width

    @property
    def parameters(self) -> int:
        """Exactly how many parameters a model of this shape has; tied weights count once."""
        return self.embedding_parameters + self.blocks * self.block_parameters + self.width


def shape_for_budget(parameters: int, vocabulary: int, *, tied: bool = True) -> LlamaShape:
    """The best proportioned Llama within 3 % of ``parameters``, or the nearest one where the grid is coarser.

    Widths are multiples of 32 up to 128, then of 64; MLP widths are multiples of 64 (32 up to width 128), so that
    rows divide into quantization groups. Twin comparisons rely on this being a pure function of its arguments.

    Raises: RecipeError: not even the smallest shape fits, which the embeddings of a vocabulary mostly decide.
    """
    smallest = smallest_shape(vocabulary, tied=tied)
    if parameters < smallest.parameters * (1 - TOLERANCE):
        raise RecipeError(
            f"{parameters:,} parameters are too few for a vocabulary of {vocabulary:,}: the smallest model has "
            f"{smallest.parameters:,}, {smallest.embedding_parameters:,} of them embeddings",
            next_step=f"ask for at least {smallest.parameters} parameters, or for a smaller vocabulary",
        )
    candidates = list(_candidates(parameters, vocabulary, tied=tied))
    near = [shape for shape in candidates if abs(shape.parameters / parameters - 1) <= TOLERANCE]
    if near:
        return min(near, key=lambda shape: _strain(shape, parameters))
    return min(candidates, key=lambda shape: abs(shape.parameters - parameters))


def smallest_shape(vocabulary: int, *, tied: bool = True) -> LlamaShape:
    """The smallest Llama on the grid: one block of width 32."""
    return LlamaShape(
        blocks=1, width=_COLUMNS, mlp_width=_COLUMNS, heads=1, kv_heads=1, vocabulary=vocabulary, tied=tied
    )


def _candidates(parameters: int, vocabulary: int, *, tied: bool) -> Iterator[LlamaShape]:
    """For every width and depth that can fit, the shape whose MLP brings it nearest to the budget."""
    width = _COLUMNS
    while width <= _MAX_WIDTH:
        step = _COLUMNS if width <= 128 else 2 * _COLUMNS
        heads = width // (32 if width < 256 else 64)
        narrow = LlamaShape(1, width, step, heads, heads, vocabulary, tied)
        if width > _COLUMNS and narrow.parameters > parameters * (1 + TOLERANCE):
            return
        fixed = narrow.parameters - narrow.block_parameters
        most = max(1, min(math.ceil(8 * _usual_blocks(width)), (parameters - fixed) // narrow.block_parameters + 1))
        for blocks in range(1, most + 1):
            spare = (parameters - fixed) / blocks - (narrow.block_parameters - 3 * width * step)
            mlp_width = max(1, round(spare / (3 * width * step))) * step
            yield LlamaShape(blocks, width, mlp_width, heads, heads, vocabulary, tied)
        width += _COLUMNS if width < 128 else 2 * _COLUMNS


def _usual_blocks(width: int) -> float:
    return min(width / 32, math.sqrt(width) / 2)


def _strain(shape: LlamaShape, parameters: int) -> float:
    """How far a shape is from usual proportions and from the budget: squared log ratios, each 1 at a factor of e."""
    depth = math.log(shape.blocks / _usual_blocks(shape.width))
    mlp = math.log(shape.mlp_width / (_MLP_PER_WIDTH * shape.width))
    budget = (shape.parameters / parameters - 1) / TOLERANCE
    return depth**2 + 4 * mlp**2 + 0.04 * budget**2
