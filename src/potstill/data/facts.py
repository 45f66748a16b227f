"""What the data stage says about its tokens, for the stages after it."""

from dataclasses import dataclass
from pathlib import Path

from potstill.core.durable import read_json
from potstill.core.errors import InputError

__all__ = ["TokenFacts", "token_facts", "vocabulary_of"]


@dataclass(frozen=True)
class TokenFacts:
    """How many tokens there are, and which of them begin and end a text."""

    vocabulary: int
    beginning_id: int
    end_id: int


def token_facts(data: Path) -> TokenFacts:
    """Read ``data.json``.

    Raises: InputError: the file is damaged.
    """
    path = data / "data.json"
    facts = read_json(path)
    vocabulary, beginning_id, end_id = (
        facts.get(name) if isinstance(facts, dict) else None for name in ("vocabulary", "beginning_id", "end_id")
    )
    if not (isinstance(vocabulary, int) and isinstance(beginning_id, int) and isinstance(end_id, int)):
        raise InputError("doesn't say how many tokens there are and which begin and end a text", where=str(path))
    if not (vocabulary > 0 and 0 <= beginning_id < vocabulary and 0 <= end_id < vocabulary):
        raise InputError(f"tokens {beginning_id} and {end_id} of {vocabulary} can't be right", where=str(path))
    return TokenFacts(vocabulary, beginning_id, end_id)


def vocabulary_of(data: Path) -> int:
    """How many tokens the text's tokenizer knows.

    Raises: InputError: ``data.json`` is damaged.
    """
    return token_facts(data).vocabulary
