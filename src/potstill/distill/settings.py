"""Which losses a student trains on, as a recipe says it; free of torch, so that a recipe is checked at once."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from potstill.core.errors import RecipeError
from potstill.core.settings import Settings

__all__ = ["CrossEntropy", "ForwardKl", "Loss", "check_losses", "needs_labels"]


class ForwardKl(Settings):
    """KL(teacher || student) on the soft labels, both softened by ``temperature``."""

    kind: Literal["forward_kl"] = "forward_kl"
    weight: float = Field(default=1.0, gt=0)
    temperature: float = Field(default=1.0, gt=0)


class CrossEntropy(Settings):
    """Minus the log-probability of the true next token."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    weight: float = Field(default=1.0, gt=0)


Loss = Annotated[ForwardKl | CrossEntropy, Field(discriminator="kind")]


def needs_labels(losses: Sequence[ForwardKl | CrossEntropy]) -> bool:
    """Whether any of the losses looks at soft labels."""
    return any(isinstance(loss, ForwardKl) for loss in losses)


def check_losses(losses: Sequence[ForwardKl | CrossEntropy], label_kind: str | None) -> None:
    """Refuse losses that can't be computed from labels of ``label_kind`` (None: there are no labels).

    Raises: RecipeError: no loss at all, a kind twice, labels missing, or labels that don't hold what a loss needs.
    """
    kinds = [loss.kind for loss in losses]
    if not kinds:
        raise RecipeError("there is no loss to train on", where="losses", next_step="write [{kind: forward_kl}]")
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise RecipeError(f"{kind} stands there twice", where="losses", next_step="add the weights up in one entry")
    for loss in losses:
        if isinstance(loss, ForwardKl):
            _check_forward_kl(loss, label_kind)


def _check_forward_kl(loss: ForwardKl, label_kind: str | None) -> None:
    if label_kind is None:
        raise RecipeError(
            "forward_kl needs the teacher's soft labels, and there are none",
            where="losses",
            next_step="add labels: {kind: top_k}, or train on {kind: cross_entropy}",
        )
    if label_kind == "sampled":
        raise RecipeError(
            "forward_kl can't be computed from sampled labels: draws don't tell the teacher's entropy",
            where="losses",
            next_step="use labels: {kind: top_k} or {kind: dense}",
        )
    if label_kind != "dense" and loss.temperature != 1.0:
        raise RecipeError(
            f"temperature {loss.temperature:g} needs the whole distribution: "
            f"a {label_kind} label is truncated and can't be softened again",
            where="losses.forward_kl.temperature",
            next_step="use temperature: 1.0, or labels: {kind: dense}",
        )
