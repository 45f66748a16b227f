"""Which losses a student trains on, as a recipe says it; free of torch, so that a recipe is checked at once."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field

from potstill.core.errors import BugError, RecipeError
from potstill.core.settings import Settings

__all__ = [
    "CrossEntropy",
    "Divergence",
    "ForwardKl",
    "HiddenStates",
    "JensenShannon",
    "Loss",
    "ReverseKl",
    "SkewKl",
    "SkewReverseKl",
    "TotalVariation",
    "block_pairs",
    "check_losses",
    "hidden_states_of",
    "needs_labels",
    "refusal",
    "temperature_of",
]


class _Weighted(Settings):
    """One term of the sum that the student minimises."""

    weight: float = Field(default=1.0, gt=0)


class _Softened(_Weighted):
    """A divergence of two distributions that are both softened by ``temperature``."""

    temperature: float = Field(default=1.0, gt=0)


class ForwardKl(_Softened):
    """KL(teacher || student): the student covers all that the teacher says."""

    kind: Literal["forward_kl"] = "forward_kl"


class ReverseKl(_Softened):
    """KL(student || teacher): the student says nothing that the teacher doesn't."""

    kind: Literal["reverse_kl"] = "reverse_kl"


class JensenShannon(_Softened):
    """beta KL(teacher || m) + (1 - beta) KL(student || m), with m = beta teacher + (1 - beta) student."""

    kind: Literal["jensen_shannon"] = "jensen_shannon"
    beta: float = Field(default=0.5, gt=0, lt=1)


class SkewKl(_Softened):
    """KL(teacher || alpha teacher + (1 - alpha) student), as in DistiLLM."""

    kind: Literal["skew_kl"] = "skew_kl"
    alpha: float = Field(default=0.1, gt=0, lt=1)


class SkewReverseKl(_Softened):
    """KL(student || (1 - alpha) teacher + alpha student), as in DistiLLM."""

    kind: Literal["skew_reverse_kl"] = "skew_reverse_kl"
    alpha: float = Field(default=0.1, gt=0, lt=1)


class TotalVariation(_Weighted):
    """Half the sum of the absolute differences of the probabilities: a share, no nats."""

    kind: Literal["total_variation"] = "total_variation"


class CrossEntropy(_Weighted):
    """Minus the log-probability of the true next token."""

    kind: Literal["cross_entropy"] = "cross_entropy"


class HiddenStates(_Weighted):
    """Blocks of the student against blocks of the teacher, whose width a learned projection gives them.

    ``match``: "cosine" is 1 - the cosine of the angle, "mse" the mean squared difference over the width; no nats. The
    mean over the pairs is added to the other losses. ``blocks``: pairs [student's, teacher's] counted from 0, or
    "auto": every block of the student, in proportion, the last to the last. The teacher reads every batch, every epoch.
    """

    kind: Literal["hidden_states"] = "hidden_states"
    match: Literal["cosine", "mse"] = "cosine"
    blocks: Literal["auto"] | Annotated[tuple[tuple[int, int], ...], Field(min_length=1)] = "auto"


Divergence = ForwardKl | ReverseKl | JensenShannon | SkewKl | SkewReverseKl | TotalVariation
"""What is between the student and the teacher's soft labels."""

Loss = Annotated[Divergence | CrossEntropy | HiddenStates, Field(discriminator="kind")]

_NO_LABELS = "needs the teacher's soft labels, and there are none"
_NEVER_DRAWN = "it needs the teacher's probability of tokens that were never drawn"
_BENT = "it isn't linear in the teacher's probabilities, so a mean over draws is another quantity"

_REFUSED: Mapping[str, Mapping[str | None, str | None]] = MappingProxyType(
    {
        "forward_kl": {"dense": None, "top_k": None, "sampled": None, None: _NO_LABELS},
        "reverse_kl": {"dense": None, "top_k": None, "sampled": _NEVER_DRAWN, None: _NO_LABELS},
        "jensen_shannon": {"dense": None, "top_k": None, "sampled": _BENT, None: _NO_LABELS},
        "skew_kl": {"dense": None, "top_k": None, "sampled": _BENT, None: _NO_LABELS},
        "skew_reverse_kl": {"dense": None, "top_k": None, "sampled": _BENT, None: _NO_LABELS},
        "total_variation": {"dense": None, "top_k": None, "sampled": _BENT, None: _NO_LABELS},
        "cross_entropy": {"dense": None, "top_k": None, "sampled": None, None: None},
        "hidden_states": {"dense": None, "top_k": None, "sampled": None, None: None},
    }
)
"""Kind of loss → kind of label (None: no labels) → why the one can't be computed from the other, None if it can."""

_NOT_SOFTENED: Mapping[str | None, str] = MappingProxyType(
    {
        "top_k": "a truncated label can't be softened again",
        "sampled": "draws of one temperature tell little of another's distribution",
    }
)
"""Kinds of label that carry no temperature but their own, and why."""


def refusal(loss: str, label_kind: str | None) -> str | None:
    """Why a kind of loss can't be computed from a kind of label; None if it can.

    Raises: BugError: the table has no such entry.
    """
    if label_kind not in _REFUSED.get(loss, {}):
        raise BugError(f"whether {loss} can be computed from {label_kind} labels isn't said", where="distill.settings")
    return _REFUSED[loss][label_kind]


def temperature_of(loss: Divergence) -> float:
    """The temperature of a divergence; 1.0 of one that has none."""
    return loss.temperature if isinstance(loss, _Softened) else 1.0


def needs_labels(losses: Sequence[Loss]) -> bool:
    """Whether any of the losses looks at soft labels."""
    return any(isinstance(loss, Divergence) for loss in losses)


def check_losses(losses: Sequence[Loss], label_kind: str | None) -> None:
    """Refuse losses that can't be computed from labels of ``label_kind`` (None: there are no labels).

    Raises: RecipeError: no loss at all, a kind twice, labels missing, or labels that don't hold what a loss needs.
    """
    kinds = [loss.kind for loss in losses]
    if not kinds:
        raise RecipeError("there is no loss to train on", where="losses", next_step="write [{kind: forward_kl}]")
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise RecipeError(f"{kind} stands there twice", where="losses", next_step="add the weights up in one entry")
    if set(kinds) == {"hidden_states"}:
        raise RecipeError(
            "hidden_states alone teaches no token: it reaches neither the last norm nor the output head",
            where="losses",
            next_step="add {kind: forward_kl} or {kind: cross_entropy}",
        )
    for loss in losses:
        _check(loss, label_kind)


def block_pairs(
    blocks: Literal["auto"] | tuple[tuple[int, int], ...], num_student: int, num_teacher: int
) -> tuple[tuple[int, int], ...]:
    """Which block of the student is matched with which of the teacher, counted from 0.

    "auto" is block i of S with the teacher's block round((i + 1) T / S) - 1, halves rounded up.

    Raises: RecipeError: a block that isn't there.
    """
    if blocks == "auto":
        after = ((2 * (block + 1) * num_teacher + num_student) // (2 * num_student) for block in range(num_student))
        return tuple((block, max(number, 1) - 1) for block, number in enumerate(after))
    for student, teacher in blocks:
        if not (0 <= student < num_student and 0 <= teacher < num_teacher):
            raise RecipeError(
                f"[{student}, {teacher}] names a block that isn't there: the student has {num_student}, "
                f"the teacher {num_teacher}, counted from 0",
                where="losses.hidden_states.blocks",
                next_step="name others, or write blocks: auto",
            )
    return blocks


def hidden_states_of(losses: Sequence[Loss]) -> HiddenStates | None:
    """The matching of hidden states among the losses, if there is one."""
    return next((loss for loss in losses if isinstance(loss, HiddenStates)), None)


def _check(loss: Loss, label_kind: str | None) -> None:
    reason = refusal(loss.kind, label_kind)
    if reason is not None and label_kind is None:
        raise RecipeError(
            f"{loss.kind} {reason}",
            where="losses",
            next_step="add labels: {kind: top_k}, or train on {kind: cross_entropy}",
        )
    if reason is not None:
        raise RecipeError(
            f"{loss.kind} can't be computed from {label_kind} labels: {reason}",
            where="losses",
            next_step="use labels: {kind: top_k} or {kind: dense}, or the loss {kind: forward_kl}",
        )
    if isinstance(loss, _Softened) and loss.temperature != 1.0 and label_kind in _NOT_SOFTENED:
        raise RecipeError(
            f"temperature {loss.temperature:g} needs the whole distribution: {_NOT_SOFTENED[label_kind]}",
            where=f"losses.{loss.kind}.temperature",
            next_step="use temperature: 1.0, or labels: {kind: dense}",
        )
