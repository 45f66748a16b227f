"""What the data stage says about the vocabulary."""

from pathlib import Path

from potstill.core.durable import read_json
from potstill.core.errors import InputError

__all__ = ["vocabulary_of"]


def vocabulary_of(data: Path) -> int:
    """How many tokens the text's tokenizer knows, from ``data.json``.

    Raises: InputError: the file is damaged.
    """
    facts = read_json(data / "data.json")
    vocabulary = facts.get("vocabulary") if isinstance(facts, dict) else None
    if not isinstance(vocabulary, int) or vocabulary < 1:
        raise InputError("doesn't say how large the vocabulary is", where=str(data / "data.json"))
    return vocabulary
