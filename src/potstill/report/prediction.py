"""What happens inside, for one prompt: embeddings, hidden states block by block, and the words each model would say."""

from collections.abc import Sequence
from dataclasses import dataclass

from potstill.report import figures
from potstill.report.charts import colour_of
from potstill.report.summary import Candidate, Prediction

__all__ = ["Cell", "Guess", "GuessRow", "PredictionView", "Strip", "prediction_view"]

_MAX_ROWS = 10


@dataclass(frozen=True)
class Cell:
    """One number of a heat strip: its strength from 0 to 1 and its sign."""

    strength: float
    negative: bool


@dataclass(frozen=True)
class Strip:
    """A few numbers as shades, and the same in words."""

    cells: Sequence[Cell]
    words: str


@dataclass(frozen=True)
class Guess:
    """One model's probability for one word; None where the word is not among those it recorded."""

    probability: float | None
    logit: float | None
    width: float
    is_top: bool


@dataclass(frozen=True)
class GuessRow:
    """A word, and what each model gives it."""

    token: str
    id: int | None
    is_true_next: bool
    guesses: Sequence[Guess]


@dataclass(frozen=True)
class PredictionView:
    """One prompt, ready for drawing."""

    source: Prediction
    embeddings: Sequence[Strip]
    states: Sequence[Strip]
    models: Sequence[tuple[str, str]]
    rows: Sequence[GuessRow]
    tops: Sequence[tuple[str, Candidate]]


def prediction_view(prediction: Prediction) -> PredictionView:
    """Prepare one prompt: embeddings share one scale, each block's state has its own (its RMS says how large)."""
    values = [value for token in prediction.tokens for value in token.embedding if value is not None]
    largest = max(map(abs, values), default=0.0)
    names = _in_order(prediction.candidates)
    return PredictionView(
        source=prediction,
        embeddings=[_strip(token.embedding, largest) for token in prediction.tokens],
        states=[
            _strip(block.values, max((abs(value) for value in block.values if value is not None), default=0.0))
            for block in prediction.blocks
        ],
        models=[(name, colour_of(name)) for name in names],
        rows=_guess_rows(prediction, names),
        tops=[(name, top) for name in names if (top := _top(prediction.candidates[name])) is not None],
    )


def _in_order(names: dict[str, list[Candidate]]) -> list[str]:
    first = [name for name in ("teacher", "student", "student-int8") if name in names]
    return first + [name for name in names if name not in first]


def _guess_rows(prediction: Prediction, names: Sequence[str]) -> list[GuessRow]:
    by_name = {name: {_key(candidate): candidate for candidate in prediction.candidates[name]} for name in names}
    everything = {key: candidate for name in names for key, candidate in by_name[name].items()}
    if not everything:
        return []
    widest = max((c.probability or 0.0 for of_model in by_name.values() for c in of_model.values()), default=0.0) or 1.0
    tops = {name: _top(prediction.candidates[name]) for name in names}

    def importance(key: tuple[int | None, str]) -> float:
        return max((by_name[name][key].probability or 0.0) for name in names if key in by_name[name])

    ordered = sorted(everything, key=lambda key: -importance(key))
    kept = ordered[:_MAX_ROWS] + [key for key in ordered[_MAX_ROWS:] if key[1] == prediction.true_next]
    if names:
        leading = by_name[names[0]]
        kept.sort(key=lambda key: -(leading[key].probability or 0.0) if key in leading else 1 - importance(key))
    return [
        GuessRow(
            token=everything[key].token,
            id=everything[key].id,
            is_true_next=everything[key].token == prediction.true_next,
            guesses=[_guess(by_name[name].get(key), tops[name], widest) for name in names],
        )
        for key in kept
    ]


def _key(candidate: Candidate) -> tuple[int | None, str]:
    return candidate.id, candidate.token


def _guess(candidate: Candidate | None, top: Candidate | None, widest: float) -> Guess:
    if candidate is None or candidate.probability is None:
        return Guess(None, None, 0.0, is_top=False)
    return Guess(candidate.probability, candidate.logit, candidate.probability / widest, is_top=candidate is top)


def _top(candidates: Sequence[Candidate]) -> Candidate | None:
    return max(candidates, key=lambda candidate: candidate.probability or 0.0, default=None)


def _strip(values: Sequence[float | None], largest: float) -> Strip:
    cells = [
        Cell(strength=round(abs(value or 0.0) / largest, 2) if largest else 0.0, negative=(value or 0.0) < 0)
        for value in values
    ]
    return Strip(cells, ", ".join(figures.decimal(value, 2) for value in values))
