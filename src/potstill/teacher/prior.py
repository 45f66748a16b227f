"""What draws are coded against, fitted to the draws at the first positions of the text.

Shapes: B rows of a batch, T tokens, P positions, N draws, C tokens of context, V vocabulary, D width.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.core import interrupt
from potstill.core.trace import Trace
from potstill.labels.draws import level_of
from potstill.labels.items import group_tokens
from potstill.labels.kinds import Draws
from potstill.labels.likeliest import first_of_kind, rank_among
from potstill.labels.prior import Prior, contexts_of, read_prior
from potstill.labels.prior_fit import fit_prior, grouping_pays, width_for
from potstill.labels.settings import Sampled
from potstill.labels.store import shard_ranges
from potstill.model.anatomy import output_head
from potstill.teacher.local import Answers, LocalTeacher

__all__ = ["prior_for"]

_POSITIONS_TO_FIT = 1 << 16
_MOST_DIRECTIONS = 256
_ROWS_AT_ONCE = 1 << 13


def prior_for(answers: Answers, path: Path, trace: Trace) -> Prior | None:
    """What draws are coded against: the one of an earlier try, or one fitted to the draws of the first rows."""
    teacher, sequences = answers.teacher, answers.sequences
    kind = teacher.settings.labels
    if not isinstance(kind, Sampled):
        return None
    if path.exists():
        return read_prior(path)[0]
    num_rows = int(np.searchsorted(np.cumsum(sequences.scored_by_row), _POSITIONS_TO_FIT)) + 1
    draws: list[Draws] = []
    contexts: list[NDArray[np.int64]] = []
    for batch in (batch for rows in shard_ranges(len(sequences)) for batch in answers.batches(rows)):
        if batch.start >= num_rows:
            break
        interrupt.check()
        draws += [part for part in answers.ahead(batch) if isinstance(part, Draws)]
        tokens_BT, scored_BT = sequences.rows(np.arange(batch.start, batch.stop))
        contexts += [
            contexts_of(tokens_T, np.flatnonzero(scored_T), teacher.vocabulary)
            for tokens_T, scored_T in zip(tokens_BT, scored_BT, strict=True)
        ]
        trace.progress("prior of the draws", batch.start, min(num_rows, len(sequences)), "sentences")
    width = width_for(sequences.num_scored, kind.draws, teacher.vocabulary)
    trace.metric("prior_width", width, "1")
    levels_P = level_of(np.concatenate([part.true_logprobs_P.numpy() for part in draws]))
    draws_PN = np.concatenate([part.draws_PN.numpy() for part in draws])
    weighted = [part.weight_levels_PN.numpy() for part in draws if part.weight_levels_PN is not None]
    pays = width > 0 and grouping_pays(sequences.num_scored, kind.draws, teacher.vocabulary)
    alike_VD = _alike(teacher) if pays else None
    return fit_prior(
        np.concatenate(contexts),
        draws_PN,
        levels_P,
        rank_among(draws_PN, np.concatenate([part.likeliest_P.numpy() for part in draws])),
        weight_levels=np.concatenate(weighted)[first_of_kind(draws_PN)] if weighted else None,
        items=group_tokens(draws_PN, teacher.vocabulary, alike_VD=alike_VD, seed=teacher.settings.seed),
        width=width,
        seed=teacher.settings.seed,
    )


def _alike(teacher: LocalTeacher) -> Tensor:
    """The rows of the teacher's head; of a wide one, in few random directions, which keep who is near to whom.

    Returns: float32 [V, D], D at most 256.
    """
    head_VD = output_head(teacher.model).weight.detach()[: teacher.vocabulary]
    width = head_VD.shape[1]
    if width <= _MOST_DIRECTIONS:
        return head_VD.float().cpu()
    generator = torch.Generator().manual_seed(teacher.settings.seed)
    directions = torch.randn(width, _MOST_DIRECTIONS, generator=generator)
    return torch.cat([part.float().cpu() @ directions for part in torch.split(head_VD, _ROWS_AT_ONCE)])
