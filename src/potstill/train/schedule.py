"""The learning rate at a step: linear warm-up, then a cosine down to a share of the peak."""

import math

__all__ = ["learning_rate_at"]


def learning_rate_at(step: int, num_steps: int, *, peak: float, warmup_share: float, final_share: float) -> float:
    """The rate at a step of 0 ... num_steps - 1: rises linearly over the warm-up, ends at ``final_share`` x peak.

    Source: Loshchilov & Hutter 2017 (SGDR), eq. 5, one period, after a linear warm-up.
    """
    num_warmup = round(num_steps * warmup_share)
    if step < num_warmup:
        return peak * (step + 1) / num_warmup
    progress = (step - num_warmup) / max(num_steps - 1 - num_warmup, 1)
    return peak * (final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))
