"""How many positions' logits may live at once; free of torch, so that a plan can ask too."""

__all__ = ["positions_at_once"]

_LOGITS_AT_ONCE = 1 << 23
_POSITIONS_PER_STEP = 64


def positions_at_once(vocabulary: int) -> int:
    """How many positions' float32 logits fill about 32 MB: a multiple of 64, so that kernels meet few shapes."""
    return max(_LOGITS_AT_ONCE // vocabulary // _POSITIONS_PER_STEP, 1) * _POSITIONS_PER_STEP
