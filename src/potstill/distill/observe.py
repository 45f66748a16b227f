"""What does an epoch's line of figures mean? One sentence in words, a pure function of the figures.

A row of the history holds ``epoch``, ``train_loss_nats``, ``validation_loss_nats``, and where they are measured
``validation_accuracy``, ``validation_agreement``, and ``loss`` and ``validation_loss``, what the losses are. Only rows
up to the epoch asked for are looked at, so the sentence written during training is the one a report derives later.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["FAST", "GAP_CLOSE", "GAP_WIDE", "STEADY", "STILL", "observe"]

FAST = 0.10
"""A relative fall of the validation loss by at least this much in an epoch is fast learning ..."""
STEADY = 0.02
"""... by at least this much, steady improvement ..."""
STILL = 0.005
"""... and a change smaller than this is none."""
GAP_CLOSE = 0.05
"""Train and validation loss are close when validation is above train by at most this share ..."""
GAP_WIDE = 0.25
"""... and far apart when by more than this one."""

_QUANTITY = {
    "forward_kl": "KL to the teacher",
    "reverse_kl": "reverse KL to the teacher",
    "jensen_shannon": "Jensen-Shannon divergence to the teacher",
    "skew_kl": "skew KL to the teacher",
    "skew_reverse_kl": "skew reverse KL to the teacher",
    "total_variation": "total variation to the teacher",
    "cross_entropy": "cross-entropy",
}
"""Kind of loss → words. A row names under ``validation_loss`` what its validation loss is, else under ``loss``."""


def observe(history: Sequence[Mapping[str, Any]], epoch: int) -> str:
    """Say in one sentence what happened in ``epoch``: how the held-out loss moved, and whether it over-fits.

    Raises: ValueError: the history has no such epoch.
    """
    rows = [row for row in history if row["epoch"] <= epoch]
    if not rows or rows[-1]["epoch"] != epoch:
        raise ValueError(f"the history has no epoch {epoch}")
    row = rows[-1]
    if not _is_finite(row["validation_loss_nats"]) or not _is_finite(row["train_loss_nats"]):
        return "the loss is no number any more: training has diverged; a smaller learning rate would help"
    if len(rows) == 1:
        return f"the first pass over the text: {_figures(None, row)}; {_gap(row)}"
    before = rows[-2]
    if not _is_finite(before["validation_loss_nats"]):
        return f"back to finite numbers: {_figures(None, row)}"
    change = _relative_change(before["validation_loss_nats"], row["validation_loss_nats"])
    if change > STILL:
        return f"{_worse(rows)}: {_figures(before, row)}"
    return f"{_better(change, row)}: {_figures(before, row)}; {_gap(row)}"


def _better(change: float, row: Mapping[str, Any]) -> str:
    if -change < STILL:
        return "has nearly converged"
    if -change < STEADY:
        return "improves slowly"
    if -change < FAST:
        return "keeps improving"
    return "comes quickly closer to the teacher" if _is_distilled(row) else "learns quickly"


def _worse(rows: Sequence[Mapping[str, Any]]) -> str:
    """Over-fitting is a held-out loss that rises while the train loss falls; anything else is an unsteady step."""
    row, before = rows[-1], rows[-2]
    finite = [one for one in rows if _is_finite(one["validation_loss_nats"])]
    best = min(finite, key=lambda one: (one["validation_loss_nats"], one["epoch"]))
    if row["train_loss_nats"] < before["train_loss_nats"]:
        return f"over-fits, the validation loss rises while the train loss falls (best was epoch {best['epoch']})"
    return f"a setback, train and validation loss rise together (best was epoch {best['epoch']})"


def _figures(before: Mapping[str, Any] | None, row: Mapping[str, Any]) -> str:
    kind = str(row.get("validation_loss", row.get("loss")))
    quantity, unit = _QUANTITY.get(kind, "loss"), "" if kind == "total_variation" else " nats"
    loss = row["validation_loss_nats"]
    if before is None:
        parts = [f"{quantity} {loss:.2f}{unit}"]
    else:
        start = before["validation_loss_nats"]
        parts = [f"{quantity} {start:.2f} → {loss:.2f}{unit} ({_percent(_relative_change(start, loss))})"]
    share = "validation_agreement" if row.get("validation_agreement") is not None else "validation_accuracy"
    if row.get(share) is not None:
        name = "agreement" if share == "validation_agreement" else "accuracy"
        earlier = None if before is None else before.get(share)
        parts.append(
            f"{name} {row[share]:.2f}" if earlier is None else f"{name} {earlier:.2f} → {row[share]:.2f}",
        )
    return ", ".join(parts)


def _gap(row: Mapping[str, Any]) -> str:
    """Validation against train loss. The train loss is a mean over the epoch, so early it lies above."""
    train, validation = row["train_loss_nats"], row["validation_loss_nats"]
    gap = _relative_change(train, validation)
    if gap < -GAP_CLOSE:
        return f"validation is below the epoch's mean train loss ({train:.2f}), as while learning"
    if gap <= GAP_CLOSE:
        return "train and validation are close"
    if gap <= GAP_WIDE:
        return f"validation is a little above train ({train:.2f})"
    return f"validation is far above train ({train:.2f}): it begins to learn the text by heart"


def _relative_change(start: float, end: float) -> float:
    """(end - start) / start; a start of zero counts as no change, or as doubling."""
    if start <= 0:
        return 0.0 if end <= start else 1.0
    return round((end - start) / start, 6)


def _percent(share: float) -> str:
    if abs(share) < 0.0005:
        return "±0 %"
    text = f"{100 * share:+.0f} %" if abs(share) >= 0.0095 else f"{100 * share:+.1f} %"
    return text.replace("-", "\N{MINUS SIGN}")


def _is_distilled(row: Mapping[str, Any]) -> bool:
    return row.get("loss") == "forward_kl" or row.get("validation_agreement") is not None


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
