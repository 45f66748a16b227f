"""From measurements to the rows of summary.json's ``models``."""

import math
from collections.abc import Mapping
from typing import Any

from potstill.core.trace import Trace
from potstill.evaluate.bootstrap import paired_difference, perplexity_interval_95
from potstill.evaluate.entries import Entry
from potstill.evaluate.likelihood import Scores
from potstill.evaluate.settings import EvaluateSettings
from potstill.evaluate.speed import Speed, Work
from potstill.runtime.engine import EngineFacts

__all__ = ["cost", "finite", "identity", "quality"]


def identity(entry: Entry, facts: EngineFacts) -> dict[str, Any]:
    """Which model, in which file, in which runtime; how large."""
    return {
        "name": entry.name,
        "format": facts.format,
        "engine": facts.engine,
        "dtype": facts.dtype,
        "parameters": facts.parameters,
        "bytes": facts.file_bytes,
    }


def quality(entry: Entry, scores: Mapping[str, Scores], reference: str, settings: EvaluateSettings) -> dict[str, Any]:
    """How well it predicts, and how close it is to the teacher and to what it was made from.

    Where the reference isn't the teacher, agreement and KL stand under the reference's name, and those to the teacher
    are null. A file made from a model also has ``difference_to_base_nats``, paired, with its interval.
    """
    own = scores[entry.key]
    sure = {"seed": settings.seed, "num_resamples": settings.resamples}
    row = {
        "perplexity": own.perplexity,
        "perplexity_interval_95": list(perplexity_interval_95(own, **sure)),
        "accuracy": own.accuracy,
        "agreement_with_teacher": None,
        "kl_to_teacher_nats": None,
        f"agreement_with_{reference}": own.agreement,
        f"kl_to_{reference}_nats": own.reference_kl_nats,
        "test_positions": own.num_scored,
    }
    if entry.key != entry.base:
        difference, low, high = paired_difference(own, scores[entry.base], **sure)
        row |= {"difference_to_base_nats": difference, "difference_to_base_interval_95": [low, high]}
    return row


def cost(speed: Speed | None, peak_bytes: int | None, work: Work) -> dict[str, Any]:
    """What it costs to run; null where it wasn't measured."""
    return {
        "prefill_tokens_per_s": None if speed is None else speed.prefill_tokens_per_s.median,
        "decode_tokens_per_s": None if speed is None else speed.decode_tokens_per_s.median,
        "peak_memory_bytes": peak_bytes,
        "prompt_tokens": None if speed is None else work.prompt_tokens,
    }


def finite(row: Mapping[str, Any], trace: Trace) -> dict[str, Any]:
    """The row with null in place of infinite figures, which JSON has no word for; a warning names them."""
    wrong = [key for key, value in row.items() if not _is_finite(value)]
    if wrong:
        trace.warning(f"{row['name']} ({row['format']}): {', '.join(wrong)} can't be written as a number")
    return {key: None if key in wrong else value for key, value in row.items()}


def _is_finite(value: object) -> bool:
    if isinstance(value, list):
        return all(_is_finite(part) for part in value)
    return not isinstance(value, float) or math.isfinite(value)
