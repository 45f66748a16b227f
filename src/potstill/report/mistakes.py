"""Who first went wrong: for each prompt whose true next word is known, teacher, student or the int8 file."""

from collections.abc import Sequence
from dataclasses import dataclass

from potstill.report.summary import Candidate, Prediction

__all__ = ["Mistake", "mistakes"]


@dataclass(frozen=True)
class Mistake:
    """One prompt: the word that really came, each model's likeliest, and where the way parted."""

    prompt: str
    true_next: str
    said: Sequence[tuple[str, str]]
    verdict: str


def mistakes(predictions: Sequence[Prediction]) -> list[Mistake]:
    """One entry per prompt with a known next word and candidates of teacher, student and int8 student."""
    found = []
    for prediction in predictions:
        tops = [(name, _top(prediction.candidates.get(name, []))) for name in ("teacher", "student", "student-int8")]
        if prediction.true_next is None or any(top is None for _, top in tops):
            continue
        said = [(name, top) for name, top in tops if top is not None]
        verdict = _verdict(prediction.true_next, *(top for _, top in said))
        found.append(Mistake(prediction.prompt, prediction.true_next, said, verdict))
    return found


def _verdict(truth: str, teacher: str, student: str, small: str) -> str:
    if small == truth:
        return "no mistake" if student == truth else "int8 is right by luck: its parent was not"
    if small != student:
        return "from int8: its parent said another word"
    if student == teacher:
        return "from the teacher: the student copied it well"
    if teacher == truth:
        return "from distilling: the teacher knew"
    return "from distilling: the teacher was wrong too, but otherwise"


def _top(candidates: Sequence[Candidate]) -> str | None:
    best = max(candidates, key=lambda candidate: candidate.probability or 0.0, default=None)
    return None if best is None else best.token
