"""What every source gives: passages of text, and a count of what it had to leave out."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from potstill.core.errors import InputError

__all__ = ["BadInput", "Passage"]


@dataclass(frozen=True)
class Passage:
    """One paragraph to learn. With a ``prompt``, the text is an answer: one unit, the prompt context only."""

    text: str
    prompt: str | None = None


@dataclass
class BadInput:
    """Input that can't be used: refused at once, or skipped and counted by reason, as the recipe says."""

    policy: Literal["refuse", "skip"]
    skipped: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def found(self, reason: str, where: str) -> None:
        """Tell of something unusable: ``reason`` says what, ``where`` the file and the row or byte.

        Raises: InputError: the policy is to refuse.
        """
        if self.policy == "refuse":
            raise InputError(
                reason, where=where, next_step="mend the file, or leave such rows out with data.on_bad_input: skip"
            )
        self.skipped[reason] += 1
        self.first.setdefault(reason, where)

    def sentences(self) -> list[str]:
        """What was skipped, for people: one sentence a reason."""
        return [f"skipped {count:,}: {reason} (first: {self.first[reason]})" for reason, count in self.skipped.items()]
