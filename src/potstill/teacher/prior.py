"""What draws are coded against, fitted to the draws at the first positions of the text.

Shapes: B rows of a batch, T tokens, P positions, N draws, C tokens of context.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from potstill.core import interrupt
from potstill.core.trace import Trace
from potstill.data.sequences import PackedSequences
from potstill.labels.draws import level_of
from potstill.labels.kinds import Draws
from potstill.labels.likeliest import first_of_kind, rank_among
from potstill.labels.prior import Prior, contexts_of, read_prior
from potstill.labels.prior_fit import fit_prior, width_for
from potstill.labels.settings import Sampled
from potstill.teacher.local import LocalTeacher, labels_of_rows

__all__ = ["prior_for"]

_POSITIONS_TO_FIT = 1 << 16


def prior_for(teacher: LocalTeacher, sequences: PackedSequences, path: Path, trace: Trace) -> Prior | None:
    """What draws are coded against: the one of an earlier try, or one fitted to the draws of the first rows."""
    kind = teacher.settings.labels
    if not isinstance(kind, Sampled):
        return None
    if path.exists():
        return read_prior(path)[0]
    num_rows = max(int(np.searchsorted(np.cumsum(sequences.scored_by_row), _POSITIONS_TO_FIT)), 1)
    draws: list[Draws] = []
    contexts: list[NDArray[np.int64]] = []
    size = teacher.settings.batch_sentences
    for first in range(0, min(num_rows, len(sequences)), size):
        interrupt.check()
        rows_B = np.arange(first, min(first + size, len(sequences)))
        draws += [part for part in labels_of_rows(teacher, sequences, rows_B) if isinstance(part, Draws)]
        tokens_BT, scored_BT = sequences.rows(rows_B)
        contexts += [
            contexts_of(tokens_T, np.flatnonzero(scored_T), teacher.vocabulary)
            for tokens_T, scored_T in zip(tokens_BT, scored_BT, strict=True)
        ]
        trace.progress("prior of the draws", first, min(num_rows, len(sequences)), "sentences")
    width = width_for(sequences.num_scored, kind.draws, teacher.vocabulary)
    trace.metric("prior_width", width, "1")
    levels_P = level_of(np.concatenate([part.true_logprobs_P.numpy() for part in draws]))
    draws_PN = np.concatenate([part.draws_PN.numpy() for part in draws])
    weighted = [part.weight_levels_PN.numpy() for part in draws if part.weight_levels_PN is not None]
    return fit_prior(
        np.concatenate(contexts),
        draws_PN,
        levels_P,
        rank_among(draws_PN, np.concatenate([part.likeliest_P.numpy() for part in draws])),
        weight_levels=np.concatenate(weighted)[first_of_kind(draws_PN)] if weighted else None,
        vocabulary=teacher.vocabulary,
        width=width,
        seed=teacher.settings.seed,
    )
