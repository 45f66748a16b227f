"""One position's soft label, as bars: the words the teacher thought of, and the bucket for all it didn't name."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from potstill.report.summary import LabelExample

__all__ = ["Bar", "LabelView", "label_view"]

_MAX_BARS = 14


@dataclass(frozen=True)
class Bar:
    """A word and its probability; ``width`` is its share of the widest bar; None for the tail's word."""

    token: str | None
    id: int | None
    probability: float
    width: float
    is_true_next: bool


@dataclass(frozen=True)
class LabelView:
    """The bars of one position, what stands below them, and what its entropy amounts to."""

    context: str
    true_next: str | None
    bars: Sequence[Bar]
    folded: int
    folded_mass: float
    tail: Bar | None
    true_is_named: bool
    entropy_nats: float | None
    choices: float | None
    draws: int | None


def label_view(example: LabelExample | None) -> LabelView | None:
    """Prepare one position for drawing; None where the run recorded none."""
    if example is None or not example.entries:
        return None
    entries = sorted(
        ((entry, entry.probability) for entry in example.entries if entry.probability is not None),
        key=lambda pair: -pair[1],
    )
    widest = max([probability for _, probability in entries] + [example.tail_mass or 0.0]) or 1.0
    bars = [
        Bar(entry.token, entry.id, probability, probability / widest, entry.token == example.true_next)
        for entry, probability in entries
    ]
    shown = bars[:_MAX_BARS] + [bar for bar in bars[_MAX_BARS:] if bar.is_true_next]
    folded = [bar for bar in bars[_MAX_BARS:] if not bar.is_true_next]
    tail = example.tail_mass
    return LabelView(
        context=example.context,
        true_next=example.true_next,
        bars=shown,
        folded=len(folded),
        folded_mass=sum(bar.probability for bar in folded),
        tail=None if tail is None else Bar(None, None, tail, tail / widest, is_true_next=False),
        true_is_named=any(bar.is_true_next for bar in bars),
        entropy_nats=example.entropy_nats,
        choices=None if example.entropy_nats is None else math.exp(example.entropy_nats),
        draws=example.draws,
    )
