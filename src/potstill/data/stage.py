"""The data stage: text in; a tokenizer and three splits of packed rows out.

Shapes: N rows, T tokens per row.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.core.durable import write_json
from potstill.core.errors import BugError, InputError
from potstill.core.trace import Trace
from potstill.data.packing import Packed, pack
from potstill.data.passages import BadInput
from potstill.data.settings import DataStageSettings, TrainTokenizer
from potstill.data.sources import read_passages, source_fingerprint
from potstill.data.splits import SIDES, Paragraph, distinct_paragraphs, held_out_share, split_by_hash
from potstill.data.tokenizer import TextCoder, load_tokenizer, train_tokenizer

__all__ = ["prepare_data"]


def prepare_data(settings: DataStageSettings, inputs: Mapping[str, Path], out: Path, trace: Trace) -> None:
    """Write ``tokenizer/``, ``train.*``, ``validation.*``, ``test.*`` and ``data.json`` into ``out``.

    ``inputs["teacher_model"]`` is needed for the teacher's tokenizer alone. Started again, it does everything anew.

    Raises: InputError: the text is missing, damaged or empty.
    """
    bad = BadInput(settings.on_bad_input)
    with trace.span("read"):
        paragraphs, num_repeated = distinct_paragraphs(read_passages(settings, bad))
    for sentence in bad.sentences():
        trace.warning(sentence)
    if not paragraphs:
        raise InputError("the source holds no text", where="data.source", next_step="look at its paths and its field")
    sides = split_by_hash(paragraphs, _held_out_shares(settings, paragraphs))
    _trace_text(settings, paragraphs, trace)

    with trace.span("tokenizer"):
        coder = _coder(settings, inputs, sides["train"], trace)
        coder.tokenizer.save_pretrained(out / "tokenizer")
    with trace.span("pack"):
        packed = {side: _pack_side(settings, side, sides[side], coder, trace) for side in SIDES}
    for side in SIDES:
        packed[side].rows.save(out, side)
        _trace_rows(side, packed[side], coder, trace)
    dropped = {
        "repeated_sentences": num_repeated,
        "short_rows": sum(part.num_short for part in packed.values()),
        "truncated_sentences": sum(part.num_truncated for part in packed.values()),
        "unusable": dict(bad.skipped),
    }
    write_json(out / "data.json", _facts(settings, paragraphs, packed, coder, dropped))


def _held_out_shares(settings: DataStageSettings, paragraphs: Sequence[Paragraph]) -> dict[str, float]:
    num_characters = sum(paragraph.num_characters for paragraph in paragraphs)
    return {
        side: held_out_share(wanted, settings.tokens_per_sentence, num_characters)
        for side, wanted in (("validation", settings.validation_sentences), ("test", settings.test_sentences))
    }


def _coder(
    settings: DataStageSettings, inputs: Mapping[str, Path], paragraphs: Sequence[Paragraph], trace: Trace
) -> TextCoder:
    if not isinstance(settings.tokenizer, TrainTokenizer):
        if "teacher_model" not in inputs:
            raise BugError("the teacher's tokenizer is asked for, and no teacher was handed in")
        directory = inputs["teacher_model"]
        return TextCoder.of(load_tokenizer(directory), where=str(directory))
    wanted = settings.tokenizer.vocabulary
    coder = TextCoder.of(train_tokenizer(map(_whole_text, paragraphs), wanted), where="data.tokenizer")
    if coder.vocabulary < wanted:
        trace.warning(f"the text gives a vocabulary of {coder.vocabulary:,} tokens, not the {wanted:,} asked for")
    return coder


def _whole_text(paragraph: Paragraph) -> str:
    text = " ".join(paragraph.sentences)
    return text if paragraph.prompt is None else f"{paragraph.prompt}\n{text}"


def _pack_side(
    settings: DataStageSettings, side: str, paragraphs: Sequence[Paragraph], coder: TextCoder, trace: Trace
) -> Packed:
    wanted = _wanted_rows(settings, side)
    packed = pack(
        paragraphs,
        coder,
        tokens_per_row=settings.tokens_per_sentence,
        shortest=min(settings.shortest_sentence, settings.tokens_per_sentence),
        most_rows=wanted,
    )
    if not len(packed.rows):
        raise InputError(
            f"the {side} side got no rows: {len(paragraphs):,} paragraphs, {packed.num_short:,} rows too short",
            where="data.source",
            next_step="give more text, or lower data.shortest_sentence",
        )
    at_least = settings.sentences if wanted is None else wanted
    if len(packed.rows) < at_least:
        trace.warning(f"{side}: the text gives {len(packed.rows):,} sentences, not the {at_least:,} asked for")
    return packed


def _wanted_rows(settings: DataStageSettings, side: str) -> int | None:
    """How many rows a side should have; None for all there are."""
    if side == "validation":
        return settings.validation_sentences
    if side == "test":
        return settings.test_sentences
    if settings.teacher_sentences == "all":
        return None
    return max(settings.sentences, settings.teacher_sentences or 0)


def _trace_text(settings: DataStageSettings, paragraphs: Sequence[Paragraph], trace: Trace) -> None:
    example = _whole_text(paragraphs[0])[:300]
    trace.input(f"text ({settings.source.kind})", shape=[len(paragraphs)], dtype="paragraphs", example=example)
    trace.metric("sentences", sum(len(paragraph.sentences) for paragraph in paragraphs), "sentences")


def _trace_rows(side: str, packed: Packed, coder: TextCoder, trace: Trace) -> None:
    rows = packed.rows
    tokens = rows.tokens_NT[0, : min(12, int(rows.lengths_N[0]))].tolist()
    example = {"tokens": tokens, "text": coder.tokenizer.decode(tokens)}
    trace.output(side, shape=rows.tokens_NT.shape, dtype=str(rows.tokens_NT.dtype), example=example)
    trace.metric("fill", packed.num_tokens / rows.tokens_NT.size, "share of a row", split=side)


def _facts(
    settings: DataStageSettings,
    paragraphs: Sequence[Paragraph],
    packed: Mapping[str, Packed],
    coder: TextCoder,
    dropped: Mapping[str, Any],
) -> dict[str, Any]:
    train = packed["train"].rows
    return {
        "sentences": {
            **{side: len(packed[side].rows) for side in SIDES},
            "student": min(settings.sentences, len(train)),
            "tokens": {side: packed[side].num_tokens for side in SIDES},
            "tokens_per_sentence": settings.tokens_per_sentence,
        },
        "text": {
            "paragraphs": len(paragraphs),
            "sentences": sum(len(paragraph.sentences) for paragraph in paragraphs),
            "characters": sum(paragraph.num_characters for paragraph in paragraphs),
        },
        "dropped": dropped,
        "source": source_fingerprint(settings),
        "vocabulary": coder.vocabulary,
        "beginning_id": coder.beginning_id,
        "end_id": coder.end_id,
        "example": coder.tokenizer.decode(train.tokens_NT[0, : int(train.lengths_N[0])].tolist()),
    }
