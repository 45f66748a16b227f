"""Whether a teacher can label a text: the same tokens under the same ids, and room for a row.

Shapes: V vocabulary of the data.
"""

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from potstill.core.errors import InputError
from potstill.core.trace import Trace
from potstill.model.store import load_tokenizer

__all__ = ["check_teacher"]

_OWN = "use data.tokenizer: {kind: teacher}"


def check_teacher(
    model: PreTrainedModel,
    directory: Path,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: int,
    tokens_per_sequence: int,
    *,
    trace: Trace,
) -> None:
    """Refuse a teacher that reads other tokens than the text has, or too few of them at once.

    A teacher may know more ids than the text's tokenizer, as those padded to a round number do: the ids that stand for
    no token are left out of its distribution, and the trace says so.

    Raises: InputError: naming what differs.
    """
    known = model.config.vocab_size
    if known < vocabulary:
        problem = f"knows {known:,} tokens where the text's tokenizer has {vocabulary:,}"
        raise InputError(problem, where=str(directory), next_step=_OWN)
    if known > vocabulary:
        trace.note("vocabulary", f"the teacher's last {known - vocabulary:,} ids stand for no token of the text")
    room = getattr(model.config, "max_position_embeddings", None)
    if room is not None and room < tokens_per_sequence:
        problem = f"reads {room:,} tokens at once where a row has {tokens_per_sequence:,}"
        raise InputError(problem, where=str(directory), next_step="lower data.tokens_per_sentence")
    if not (directory / "tokenizer_config.json").is_file() and not (directory / "tokenizer.json").is_file():
        trace.warning("the teacher brings no tokenizer: that its ids mean the text's tokens is taken on trust")
        return
    _check_vocabularies(load_tokenizer(directory).get_vocab(), tokenizer.get_vocab(), directory)


def _check_vocabularies(teacher: dict[str, int], text: dict[str, int], directory: Path) -> None:
    differing = sorted((token for token, number in text.items() if teacher.get(token) != number), key=text.__getitem__)
    if differing:
        first = differing[0]
        problem = (
            f"has another tokenizer than the text: {len(differing):,} of {len(text):,} tokens differ, the first is "
            f"{first!r}, id {text[first]} in the text and {teacher.get(first, 'unknown')} to the teacher"
        )
        raise InputError(problem, where=str(directory), next_step=_OWN)
