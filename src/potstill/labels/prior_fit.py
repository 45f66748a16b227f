"""Fitting the prior to some of the teacher's draws, and rounding it to integers.

Shapes: P positions, C tokens of context, N draws of a position, V vocabulary, I items, R width, L = 256 levels.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from potstill.labels.items import MOST_ITEMS, Items
from potstill.labels.likeliest import NUM_RANKS
from potstill.labels.prior import CONTEXT_TOKENS, MOST_HIDDEN, MOST_WIDTH, NUM_LEVELS, STEPS_PER_BIT, Prior
from potstill.labels.weights import NUM_WEIGHTS

__all__ = ["fit_prior", "grouping_pays", "width_for"]

_BATCH = 512
_EPOCHS = 4
_MOST_LOGITS = 1 << 31
_LEARNING_RATE = 2e-2
_WIDTH_PER_ROOT_BYTE = 0.63
_GAIN_OF_GROUPING = 0.02
_BYTES_PER_DRAW = 0.6
_WIDTHS = (0, 4, 8, 12, 16, 24, 32, 48, MOST_WIDTH)
_MOST_CODE = 127
_MOST_BIAS = 32_000


def width_for(num_positions: int, num_draws: int, vocabulary: int) -> int:
    """The width of a prior that saves more than it takes: it grows as the root of the draws' bytes for each item."""
    bytes_per_item = _BYTES_PER_DRAW * num_draws * num_positions / min(vocabulary, MOST_ITEMS)
    return max(width for width in _WIDTHS if width <= _WIDTH_PER_ROOT_BYTE * math.sqrt(bytes_per_item))


def grouping_pays(num_positions: int, num_draws: int, vocabulary: int) -> bool:
    """Whether a store gains more, some 2 %, by knowing which tokens are alike than the byte or so that each takes."""
    return vocabulary < _GAIN_OF_GROUPING * _BYTES_PER_DRAW * num_draws * num_positions


def fit_prior(
    contexts_PC: NDArray[np.int64],
    draws_PN: NDArray[np.int64],
    levels_P: NDArray[np.int64],
    ranks_P: NDArray[np.int64],
    *,
    weight_levels: NDArray[np.int64] | None = None,
    items: Items,
    width: int,
    seed: int,
) -> Prior:
    """The prior of some width under which these draws take the fewest bits.

    ``weight_levels`` are those of all distinct draws, None where draws carry no importance weights. Width 0 gives how
    often each token is drawn at all, whatever comes before it.

    Cost: two billion logits at most, some 20 s on one core.
    """
    mass_I = np.bincount(items.item_V[draws_PN].ravel(), minlength=items.num_items)
    mass_I = mass_I + 0.5 * np.bincount(items.item_V)
    model = _LogBilinear(len(mass_I), width, torch.from_numpy(np.log(mass_I / mass_I.sum())).float(), seed)
    if width:
        item_of_token = torch.from_numpy(np.append(items.item_V.astype(np.int64), len(mass_I)))
        _train(model, item_of_token[torch.from_numpy(contexts_PC)], item_of_token[torch.from_numpy(draws_PN)], seed)
    weights_L = None if weight_levels is None else _frequencies(weight_levels, NUM_WEIGHTS)
    return _rounded(model, items, _frequencies(levels_P, NUM_LEVELS), _frequencies(ranks_P, NUM_RANKS), weights_L)


class _LogBilinear(nn.Module):
    """The prior in floats, for training: ``clip(sum_i E[item_i] M_i) . E[j] + bias[j]``, in nats."""

    def __init__(self, num_items: int, width: int, bias_I: Tensor, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        scale = 1 / math.sqrt(max(width * CONTEXT_TOKENS, 1))
        self.embeddings_IR = nn.Parameter(torch.randn(num_items, width, generator=generator) * 0.1)
        self.mixers_CRR = nn.Parameter(torch.randn(CONTEXT_TOKENS, width, width, generator=generator) * scale)
        self.bias_I = nn.Parameter(bias_I)

    def forward(self, contexts_PC: Tensor) -> Tensor:
        table_IR = nn.functional.pad(self.embeddings_IR, (0, 0, 0, 1))
        hidden_PR = torch.einsum("pcr,crs->ps", table_IR[contexts_PC], self.mixers_CRR).clamp(-1, 1)
        return hidden_PR @ self.embeddings_IR.T + self.bias_I


def _train(model: _LogBilinear, contexts_PC: Tensor, draws_PN: Tensor, seed: int) -> None:
    num_positions = len(contexts_PC)
    num_steps = max(1, min(_EPOCHS * num_positions, _MOST_LOGITS // len(model.bias_I)) // _BATCH)
    generator = torch.Generator().manual_seed(seed + 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=_LEARNING_RATE)
    order_P, at = torch.randperm(num_positions, generator=generator), 0
    for step in range(num_steps):
        if at + _BATCH > num_positions:
            order_P, at = torch.randperm(num_positions, generator=generator), 0
        rows = order_P[at : at + _BATCH]
        at += _BATCH
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * (1 - step / num_steps)
        logits_PI = model(contexts_PC[rows])
        surprise_P = logits_PI.logsumexp(1) - logits_PI.gather(1, draws_PN[rows]).mean(1)
        optimizer.zero_grad(set_to_none=True)
        surprise_P.mean().backward()
        optimizer.step()


def _rounded(
    model: _LogBilinear,
    items: Items,
    levels_L: NDArray[np.uint16],
    ranks_L: NDArray[np.uint16],
    weights_L: NDArray[np.uint16] | None,
) -> Prior:
    """Integers whose scores are the model's logits in 1/256 bits, up to the rounding.

    The embeddings' step is chosen so that the score's scale is a number of four bits times a power of two; the mixers'
    so that the hidden layer's is a power of two.
    """
    embeddings = model.embeddings_IR.detach().double().numpy()
    mixers = model.mixers_CRR.detach().double().numpy()
    per_nat = STEPS_PER_BIT / math.log(2)
    coarsest = max(np.abs(embeddings).max(initial=0.0), 1e-9) / _MOST_CODE
    scale_m, scale_e = _four_bits_above(coarsest / MOST_HIDDEN * per_nat)
    step = scale_m * 2.0**-scale_e * MOST_HIDDEN / per_nat
    shift = 0
    while np.abs(mixers).max(initial=0.0) * MOST_HIDDEN * step * 2.0**shift > _MOST_CODE:
        shift -= 1
    while np.abs(mixers).max(initial=0.0) * MOST_HIDDEN * step * 2.0 ** (shift + 1) <= _MOST_CODE and shift < 30:
        shift += 1
    bias = model.bias_I.detach().double().numpy()
    bias_I = np.rint((bias - bias.max()) * per_nat).clip(-_MOST_BIAS, 0).astype(np.int16)
    return Prior(
        items,
        np.rint(embeddings / step).clip(-_MOST_CODE, _MOST_CODE).astype(np.int8),
        np.rint(mixers * MOST_HIDDEN * step * 2.0**shift).clip(-_MOST_CODE, _MOST_CODE).astype(np.int8),
        shift,
        scale_m,
        scale_e,
        bias_I,
        levels_L,
        ranks_L,
        weights_L,
    )


def _four_bits_above(number: float) -> tuple[int, int]:
    """m, e with m / 2^e the smallest such number, 8 <= m < 16, that is at least ``number``."""
    exponent = math.floor(math.log2(number)) - 3
    mantissa = math.ceil(number * 2.0**-exponent)
    return (8, -exponent - 1) if mantissa == 16 else (mantissa, -exponent)


def _frequencies(symbols_P: NDArray[np.int64], num_symbols: int) -> NDArray[np.uint16]:
    """How often each symbol occurs, of 2^16 together, and at least once."""
    counts_L = np.bincount(symbols_P, minlength=num_symbols).astype(np.float64) + 1e-3
    frequencies_L = np.floor(counts_L / counts_L.sum() * (2**16 - num_symbols)).astype(np.int64) + 1
    frequencies_L[frequencies_L.argmax()] += 2**16 - frequencies_L.sum()
    rounded_L: NDArray[np.uint16] = frequencies_L.astype(np.uint16)
    return rounded_L
