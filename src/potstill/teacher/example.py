"""What a soft label looks like at one position, for people: {word: 0.7, …}.

Shapes: P scored positions of a row, K outcomes kept.
"""

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from potstill.data.sequences import PackedSequences
from potstill.data.tokenizer import token_text
from potstill.labels.kinds import SampledLabels, SoftLabels, TopKLabels
from potstill.labels.settings import Sampled
from potstill.labels.store import LabelStore

__all__ = ["ROWS_LOOKED_AT", "label_example"]

ROWS_LOOKED_AT = 64
_CONTEXT_TOKENS = 8
_DENSE_ENTRIES = 32


def label_example(
    store: LabelStore, sequences: PackedSequences, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any] | None:
    """A position of the first rows where the teacher is neither sure nor lost, with its label.

    It is the one whose likeliest token has a probability nearest to one half, after at least eight tokens of context
    where a row has as many; so it shows what a label is, and says nothing of how labels are on the whole.

    Returns: ``context``, ``true_next``, ``entries`` of ``token``, ``id``, ``probability``, likeliest first;
    ``tail_mass``, ``entropy_nats`` (the tail one outcome), both None of draws, which tell neither; ``draws``,
    how many, None of other labels. None if nothing is scored.
    """
    best: tuple[tuple[bool, float], int, int, TopKLabels] | None = None
    for row in range(min(len(sequences), ROWS_LOOKED_AT)):
        _, scored_1T = sequences.rows([row])
        positions_P = np.flatnonzero(scored_1T[0])
        labels = _likeliest(store.read([row]))
        for number, position in enumerate(positions_P.tolist()):
            probability = float(labels.logprobs_PK[number, 0].exp())
            rank = (position < _CONTEXT_TOKENS, abs(probability - 0.5))
            if best is None or rank < best[0]:
                best = rank, row, position, labels.at(slice(number, number + 1))
    if best is None:
        return None
    _, row, position, label = best
    tokens_T = [int(token) for token in sequences.tokens_NT[row, : position + 2]]
    probabilities_K, tail_mass = label.logprobs_PK[0].exp(), float(label.tail_mass_P[0])
    outcomes = torch.cat([probabilities_K, label.tail_mass_P])
    draws = store.kind.draws if isinstance(store.kind, Sampled) else None
    return {
        "draws": draws,
        "context": tokenizer.decode(tokens_T[:-1], skip_special_tokens=True),
        "true_next": token_text(tokenizer, tokens_T[-1]),
        "entries": [
            {"token": token_text(tokenizer, token), "id": token, "probability": probability}
            for token, probability in zip(label.ids_PK[0].tolist(), probabilities_K.tolist(), strict=True)
            if probability > 0
        ],
        "tail_mass": tail_mass if draws is None else None,
        "entropy_nats": float(torch.special.entr(outcomes).sum()) if draws is None else None,
    }


def _likeliest(labels: SoftLabels) -> TopKLabels:
    """The few likeliest entries of any labels; of draws, those drawn, with each one's share of all weights."""
    if isinstance(labels, TopKLabels):
        return labels
    if isinstance(labels, SampledLabels):
        weights_PK, order_PK = labels.weights_PK.sort(dim=-1, descending=True, stable=True)
        shares_PK = weights_PK / weights_PK.sum(-1, keepdim=True)
        return TopKLabels(labels.ids_PK.gather(-1, order_PK), shares_PK.log(), torch.zeros(len(labels)))
    kept = labels.logprobs_PV.topk(min(_DENSE_ENTRIES, labels.logprobs_PV.shape[1]), dim=-1)
    tail_P = labels.logprobs_PV.exp().scatter(-1, kept.indices, 0.0).sum(-1)
    return TopKLabels(kept.indices, kept.values, tail_P)
