"""Before labels are paid for: is the teacher worth asking?

What its student will reach without it is known only once that is trained; then the two are compared exactly. Here, for
the price of one pass over some held-out rows, the teacher is compared with what counting the student's own rows tells.
"""

from pathlib import Path

import numpy as np

from potstill.core import interrupt
from potstill.core.durable import read_json, write_json
from potstill.core.errors import InputError
from potstill.core.trace import Trace
from potstill.core.world import current
from potstill.data.sequences import PackedSequences
from potstill.teacher.asking import logprobs_of
from potstill.teacher.local import LocalTeacher, logits_of_rows
from potstill.teacher.ngrams import counting_nats, pairs_of

__all__ = ["PREFLIGHT", "check_before_capture"]

PREFLIGHT = "preflight.json"

_POSITIONS_ASKED = 1 << 13
_POSITIONS_COUNTED = 1 << 22
_DIGITS = 6


def check_before_capture(
    teacher: LocalTeacher,
    train: PackedSequences,
    held_out: PackedSequences,
    out: Path,
    trace: Trace,
    *,
    trained_here: bool,
) -> None:
    """Warn of a teacher that has nothing to teach, before it is asked about every row.

    It is asked about the first 8,192 scored positions of the held-out text. If how often each token occurs in the
    student's rows predicts those as well, it is useless. If pairs of tokens counted there do, a loaded teacher is
    foreign to this text, and its student without it, trained long enough, gets further than pairs do. One trained here
    may itself be stopped early, long before pairs are learnt, and still be ahead of a student stopped earlier yet: that
    is noted, and the plain twin decides.

    Writes: preflight.json: ``teacher_nats``, ``unigram_nats``, ``bigram_nats`` a token, ``positions``. What an earlier
    try measured is kept.
    Raises: InputError: nothing is scored; the teacher's logits are NaN or infinite.
    """
    path = out / PREFLIGHT
    if not path.exists():
        train, held_out = _first_scored(train, _POSITIONS_COUNTED), _first_scored(held_out, _POSITIONS_ASKED)
        teacher_nats = _cross_entropy(teacher, held_out)
        unigram_nats, bigram_nats = counting_nats(pairs_of(train), pairs_of(held_out), vocabulary=teacher.vocabulary)
        measured = {"teacher_nats": teacher_nats, "unigram_nats": unigram_nats, "bigram_nats": bigram_nats}
        if current().leads:
            rounded = {name: round(nats, _DIGITS) for name, nats in measured.items()}
            write_json(path, {**rounded, "positions": held_out.num_scored})
        current().gather()
    told = read_json(path)
    teacher_nats, unigram_nats, bigram_nats = (told[f"{who}_nats"] for who in ("teacher", "unigram", "bigram"))
    said = (
        f"on {told['positions']:,} held-out tokens the teacher has {teacher_nats:.3f} nats a token; counted in the "
        f"student's rows, tokens have {unigram_nats:.3f} and pairs of them {bigram_nats:.3f}"
    )
    if teacher_nats >= unigram_nats:
        trace.warning(
            f"{said}: there is nothing to learn from this teacher; give it more training, or take another one"
        )
    elif teacher_nats >= bigram_nats and not trained_here:
        trace.warning(
            f"{said}: a student trained long enough without it will be better; take a teacher that fits the text"
        )
    else:
        trace.note("preflight", said)


def _first_scored(sequences: PackedSequences, num_positions: int) -> PackedSequences:
    """The first rows that hold so many scored positions together, all rows if there are fewer.

    Raises: InputError: nothing is scored.
    """
    sums_N = np.cumsum(sequences.scored_by_row)
    if not sums_N.any():
        raise InputError("no position of the text is scored", next_step="give longer or more text")
    return sequences.first(int(np.searchsorted(sums_N, num_positions)) + 1)


def _cross_entropy(teacher: LocalTeacher, held_out: PackedSequences) -> float:
    """The teacher's own, in nats a token; several processes share the batches, which one alone would ask about too."""
    world, size = current(), teacher.settings.batch_sentences
    total = 0.0
    for first in range(world.rank * size, len(held_out), world.size * size):
        interrupt.check()
        rows_B = np.arange(first, min(first + size, len(held_out)))
        for _, logits_PV, targets_P in logits_of_rows(teacher, held_out, rows_B):
            total -= float(logprobs_of(logits_PV).gather(1, targets_P.unsqueeze(1)).double().sum())
    (total_nats,) = world.sum([total])
    return total_nats / held_out.num_scored
