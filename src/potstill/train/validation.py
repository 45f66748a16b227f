"""What a model being trained can do on held-out text, after every epoch.

Shapes: B rows of a batch, T tokens, P scored positions, D model width, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from potstill.core.errors import BugError, InputError
from potstill.core.world import current
from potstill.data.sequences import PackedSequences
from potstill.distill.chunks import positions_at_once
from potstill.distill.divergences import cross_entropy
from potstill.distill.objective import Objective, divergence
from potstill.distill.settings import Divergence, ForwardKl
from potstill.labels.kinds import DenseLabels, SampledLabels, SoftLabels, TopKLabels
from potstill.labels.store import LabelStore
from potstill.model.anatomy import hidden_states, logits_of
from potstill.train.settings import Precision

__all__ = ["measured_as", "validate", "validated_quantity"]

_ROWS_PER_BATCH = 32


def validated_quantity(objective: Objective) -> str:
    """What the validation loss of a training is, and so what chooses its best epoch: a kind of loss.

    The divergence that is trained on, where it is one; forward KL where there are several; cross-entropy where there
    is none. Always at temperature 1.
    """
    kinds = [loss.kind for loss in objective.divergences]
    return "cross_entropy" if not kinds else kinds[0] if len(kinds) == 1 else "forward_kl"


def measured_as(kind: str) -> str:
    """The key under which ``validate`` gives a kind of loss."""
    return {"forward_kl": "validation_kl_nats", "total_variation": "validation_total_variation"}.get(
        kind, f"validation_{kind}_nats"
    )


@torch.inference_mode()
def validate(
    model: PreTrainedModel,
    sequences: PackedSequences,
    labels: LabelStore | None,
    *,
    divergences: Sequence[Divergence] = (),
    precision: Precision,
) -> dict[str, float]:
    """Mean cross-entropy, perplexity and accuracy over the scored positions; with labels also KL and agreement.

    Several processes each take a share of the rows, equally many batches of them, and all get the same means.

    Returns: ``validation_cross_entropy_nats``, ``validation_perplexity``, ``validation_accuracy``, and with labels
    ``validation_kl_nats`` = KL(teacher || model) as far as the labels tell (a lower bound for top-k, an unbiased
    estimate for draws), each of ``divergences`` at temperature 1 under ``measured_as`` its kind, and
    ``validation_agreement``, the share of positions where the model's likeliest token is the teacher's.
    Raises: InputError: nothing is scored.
    """
    wanted = {measured_as(loss.kind): loss for loss in (ForwardKl(), *divergences)}
    was_training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    keys = ("validation_cross_entropy_nats", "validation_accuracy")
    sums = dict.fromkeys(keys if labels is None else (*keys, *wanted, "validation_agreement"), 0.0)
    num_positions = 0
    for logits_PV, targets_P, soft in _scored(model, sequences, labels, precision):
        top_P = logits_PV.argmax(-1)
        num_positions += len(targets_P)
        sums["validation_cross_entropy_nats"] += float(cross_entropy(logits_PV, targets_P).double().sum())
        sums["validation_accuracy"] += float((top_P == targets_P).sum())
        if soft is None:
            continue
        for key, loss in wanted.items():
            sums[key] += float(divergence(loss, logits_PV, soft).double().sum())
        sums["validation_agreement"] += float((top_P == likeliest(soft)).sum())
    model.train(was_training)
    num_scored, *totals = current().sum([num_positions, *sums.values()])
    if num_scored == 0:
        raise InputError("no position of the held-out text is scored", next_step="give longer or more text")
    measured = {key: total / num_scored for key, total in zip(sums, totals, strict=True)}
    return {**measured, "validation_perplexity": math.exp(min(measured["validation_cross_entropy_nats"], 700.0))}


def _scored(
    model: PreTrainedModel, sequences: PackedSequences, labels: LabelStore | None, precision: Precision
) -> Iterator[tuple[Tensor, Tensor, SoftLabels | None]]:
    """Logits, true tokens and labels of all scored positions, some at once; rows of like lengths together."""
    device = model.device
    by_length_N: NDArray[np.int64] = np.argsort(sequences.lengths_N, kind="stable")
    chunk = positions_at_once(model.config.vocab_size)
    world = current()
    share_N = by_length_N[world.rank :: world.size]
    for first in range(0, math.ceil(len(sequences) / world.size), _ROWS_PER_BATCH):
        rows_B = share_N[first : first + _ROWS_PER_BATCH]
        tokens, scored = sequences.rows(rows_B if len(rows_B) else by_length_N[:1])
        scored &= len(rows_B) > 0  # a share that ended before the largest one
        tokens_BT, scored_BT = torch.from_numpy(tokens).to(device), torch.from_numpy(scored).to(device)
        soft = None if labels is None else labels.read(rows_B).to(device)
        targets_P = tokens_BT.roll(-1, dims=1)[scored_BT]
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            hidden_PD = hidden_states(model, tokens_BT)[scored_BT]
        for start in range(0, len(hidden_PD), chunk):
            positions = slice(start, start + chunk)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
                logits_PV = logits_of(model, hidden_PD[positions])
            yield logits_PV, targets_P[positions], None if soft is None else soft.at(positions)


def likeliest(labels: SoftLabels) -> Tensor:
    """The teacher's likeliest token at each position, int64 [P]."""
    match labels:
        case TopKLabels(ids_PK=ids_PK):
            return ids_PK[:, 0]
        case DenseLabels(logprobs_PV=logprobs_PV):
            return logprobs_PV.argmax(-1)
        case SampledLabels(likeliest_P=Tensor() as likeliest_P):
            return likeliest_P
        case _:
            raise BugError("nobody kept the teacher's likeliest tokens beside these draws")
