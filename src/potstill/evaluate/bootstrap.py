"""How sure is a figure measured on a sample of sequences? Percentile bootstrap intervals, paired between engines.

Shapes: N sequences, R resamples.

Whole sequences are drawn with replacement: the positions of one sequence hang together, and an interval over single
positions would be too narrow. The draws are a pure function of (seed, number of sequences), so every engine is judged
on the same resamples, and a difference between two engines is a difference on the same text.

Source: Efron & Tibshirani 1993, chapters 8 (clusters) and 13 (percentiles).
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.evaluate.likelihood import Scores

__all__ = ["paired_difference", "perplexity_interval_95", "resampled_mean", "twin_verdict"]

_BLOCK_DRAWS = 1 << 22


def resampled_mean(
    sums_N: NDArray[np.float64], scored_N: NDArray[np.int64], *, seed: int, num_resamples: int
) -> NDArray[np.float64]:
    """The mean per scored position, sum(sums) / sum(scored), of every resample of sequences, float64 [R].

    Sequences without a scored position carry nothing and are left out of the draw.
    """
    kept_N = scored_N > 0
    parts_N2 = np.stack([sums_N[kept_N], scored_N[kept_N].astype(np.float64)], axis=1)
    num_kept = len(parts_N2)
    generator = np.random.default_rng([seed, num_kept])
    means_R = np.empty(num_resamples)
    step = max(1, _BLOCK_DRAWS // num_kept)
    for start in range(0, num_resamples, step):
        size = min(step, num_resamples - start)
        times_RN = generator.multinomial(num_kept, np.full(num_kept, 1 / num_kept), size=size)
        totals_R2 = times_RN.astype(np.float64) @ parts_N2
        means_R[start : start + size] = totals_R2[:, 0] / totals_R2[:, 1]
    return means_R


def perplexity_interval_95(scores: Scores, *, seed: int, num_resamples: int) -> tuple[float, float]:
    """The 2.5 and 97.5 percentiles of the perplexity; both equal to it when there is only one sequence."""
    means_R = resampled_mean(scores.nats_N, scores.scored_N, seed=seed, num_resamples=num_resamples)
    low, high = np.percentile(means_R, [2.5, 97.5])
    return _exp(float(low)), _exp(float(high))


def paired_difference(a: Scores, b: Scores, *, seed: int, num_resamples: int) -> tuple[float, float, float]:
    """Nats per scored position of ``a`` minus those of ``b``, and the difference's 95 % interval.

    Returns: (difference, low, high); negative means that ``a`` predicts better.
    """
    if not np.array_equal(a.scored_N, b.scored_N):
        raise ValueError("a paired difference needs scores of the same positions")
    difference_N = a.nats_N - b.nats_N
    means_R = resampled_mean(difference_N, a.scored_N, seed=seed, num_resamples=num_resamples)
    low, high = np.percentile(means_R, [2.5, 97.5])
    return float(difference_N.sum()) / a.num_scored, float(low), float(high)


def twin_verdict(
    student: Scores, twin: Scores, *, seed: int, num_resamples: int, which: str = "the plain twin"
) -> dict[str, Any]:
    """Did the teacher help? The distilled student against a plain twin: same shape, same text, no teacher.

    Returns: ``{"difference_nats", "interval_95": [low, high], "verdict"}``, student minus twin, so below zero means
    that distilling helped; the verdict says "can't be told" where the interval holds zero.
    """
    difference, low, high = paired_difference(student, twin, seed=seed, num_resamples=num_resamples)
    span = f"{_signed(difference)} nats per token against {which} (95 % interval {_signed(low)} to "
    span += f"{_signed(high)}), perplexity {student.perplexity:.1f} against {twin.perplexity:.1f}"
    if high < 0:
        verdict = f"Distilling helped: {span}."
    elif low > 0:
        verdict = f"Distilling did harm: {span}."
    else:
        verdict = f"Whether distilling helped can't be told from this text: {span}."
    return {"difference_nats": difference, "interval_95": [low, high], "verdict": verdict}


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 709 else math.inf


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")
