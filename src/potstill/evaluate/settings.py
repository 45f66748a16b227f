"""How a recipe asks for the evaluation."""

from typing import Annotated

from annotated_types import Ge
from pydantic import Field

from potstill.core.settings import Count, Settings

__all__ = ["EvaluateSettings"]


class EvaluateSettings(Settings):
    """What is measured on every model and file.

    ``prompts`` are looked at token by token in the report; with none, ``num_prompts`` are drawn from the test text.
    ``test_sentences`` caps how many sequences of the test text are scored. Speed is measured with prompts of
    ``prompt_tokens`` random tokens and ``new_tokens`` decoded ones, ``rounds`` times.
    """

    prompts: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    num_prompts: Annotated[int, Ge(0)] = 2
    test_sentences: Annotated[Count, Ge(1)] = 400
    continuation_tokens: Annotated[Count, Ge(1)] = 12
    speed: bool = True
    prompt_tokens: Annotated[Count, Ge(1)] = 128
    new_tokens: Annotated[Count, Ge(1)] = 32
    rounds: Annotated[Count, Ge(1)] = 5
    threads: Annotated[int, Ge(1)] | None = None
    """None: every core that this process may use."""
    resamples: Annotated[Count, Ge(100)] = 2000
    """Bootstrap resamples behind every 95 % interval."""
    seed: Annotated[int, Ge(0)] = 0
