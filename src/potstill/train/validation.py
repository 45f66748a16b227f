"""What a model being trained can do on held-out text, after every epoch.

Shapes: B rows of a batch, T tokens, P scored positions, D model width, V vocabulary.
"""

import math

import numpy as np
import torch
from transformers import PreTrainedModel

from potstill.core.errors import InputError
from potstill.core.world import current
from potstill.data.sequences import PackedSequences
from potstill.distill.divergences import cross_entropy, forward_kl
from potstill.labels.kinds import DenseLabels, SoftLabels, TopKLabels
from potstill.labels.store import LabelStore
from potstill.model.anatomy import hidden_states, logits_of
from potstill.train.settings import Precision

__all__ = ["validate"]

_ROWS_PER_BATCH = 32


@torch.inference_mode()
def validate(
    model: PreTrainedModel, sequences: PackedSequences, labels: LabelStore | None, *, precision: Precision
) -> dict[str, float]:
    """Mean cross-entropy, perplexity and accuracy over the scored positions; with labels also KL and agreement.

    Several processes each take a share of the rows, equally many batches of them, and all get the same means.

    Returns: ``validation_cross_entropy_nats``, ``validation_perplexity``, ``validation_accuracy``, and with labels
    ``validation_kl_nats`` = KL(teacher || model) as far as the labels tell (a lower bound for top-k) and
    ``validation_agreement``, the share of positions where the model's likeliest token is the teacher's.
    Raises: InputError: nothing is scored.
    """
    device = model.device
    was_training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    sums = {"cross_entropy": 0.0, "accuracy": 0.0, "kl": 0.0, "agreement": 0.0}
    num_positions = 0
    by_length_N = np.argsort(sequences.lengths_N, kind="stable")
    world = current()
    share_N = by_length_N[world.rank :: world.size]
    for start in range(0, math.ceil(len(sequences) / world.size), _ROWS_PER_BATCH):
        rows_B = share_N[start : start + _ROWS_PER_BATCH]
        tokens, scored = sequences.rows(rows_B if len(rows_B) else by_length_N[:1])
        scored &= len(rows_B) > 0  # a share that ended before the largest one
        tokens_BT, scored_BT = torch.from_numpy(tokens).to(device), torch.from_numpy(scored).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            logits_PV = logits_of(model, hidden_states(model, tokens_BT)[scored_BT])
        targets_P = tokens_BT.roll(-1, dims=1)[scored_BT]
        top_P = logits_PV.argmax(-1)
        num_positions += len(targets_P)
        sums["cross_entropy"] += float(cross_entropy(logits_PV, targets_P).double().sum())
        sums["accuracy"] += float((top_P == targets_P).sum())
        if labels is not None:
            soft = labels.read(rows_B).to(device)
            sums["kl"] += float(forward_kl(logits_PV, soft).double().sum())
            sums["agreement"] += float((top_P == likeliest(soft)).sum())
    model.train(was_training)
    num_scored, *totals = world.sum([num_positions, *sums.values()])
    if num_scored == 0:
        raise InputError("no position of the held-out text is scored", next_step="give longer or more text")
    mean = {name: total / num_scored for name, total in zip(sums, totals, strict=True)}
    measured = {
        "validation_cross_entropy_nats": mean["cross_entropy"],
        "validation_perplexity": math.exp(min(mean["cross_entropy"], 700.0)),
        "validation_accuracy": mean["accuracy"],
    }
    if labels is not None:
        measured |= {"validation_kl_nats": mean["kl"], "validation_agreement": mean["agreement"]}
    return measured


def likeliest(labels: SoftLabels) -> torch.Tensor:
    """The teacher's likeliest token at each position, int64 [P]."""
    match labels:
        case TopKLabels(ids_PK=ids_PK):
            return ids_PK[:, 0]
        case DenseLabels(logprobs_PV=logprobs_PV):
            return logprobs_PV.argmax(-1)
        case _:
            raise TypeError(type(labels))
