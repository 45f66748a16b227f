"""How much memory does quantizing take? Told from a model's shape alone; torch-free.

Weights are in memory a part at a time: a block, or the embeddings. Factors are counted in the code and rounded up.
"""

from potstill.quantize.settings import Calibrated, Gptq, Scheme, calibration_of, text_tokens_of

__all__ = ["TOKENS_PER_BATCH", "peak_bytes"]

TOKENS_PER_BATCH = 4096
"""How many tokens go through a block at once."""
_BYTES_PER_WEIGHT = 26
"""Of a part: the weight, its codes, the weight read back, and what rounding it makes on the way."""
_HESSIANS_OF_ONE_LINEAR = 8
"""Copies of the largest Hessian while it is put in order, damped, factored and inverted."""


def peak_bytes(scheme: Scheme, *, embedding: int, block: int, width: int, mlp_width: int) -> int:
    """The most that quantizing takes beside the process itself, whatever the number of blocks.

    ``embedding`` and ``block`` are parameters of the largest tensor outside of the blocks and of one block.
    """
    activations = 4 * TOKENS_PER_BATCH * (12 * width + 6 * mlp_width) if text_tokens_of(scheme) else 0
    reading = activations + _sums_bytes(calibration_of(scheme), width, mlp_width)
    return max(_BYTES_PER_WEIGHT * embedding, _BYTES_PER_WEIGHT * block + reading)


def _sums_bytes(method: Calibrated | None, width: int, mlp_width: int) -> int:
    """What is summed over the activations."""
    if method is None:
        return 0
    widest = max(width, mlp_width)
    hessians = 3 * width**2 + mlp_width**2 + (_HESSIANS_OF_ONE_LINEAR if isinstance(method, Gptq) else 1) * widest**2
    return 8 * hessians
