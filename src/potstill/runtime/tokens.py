"""Are these tokens of this model's vocabulary? Asked before they reach a runtime, which may not ask."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from potstill.core.errors import InputError
from potstill.runtime.engine import EngineFacts

__all__ = ["require_known", "require_prompt"]


def require_known(tokens: NDArray[np.int64], facts: EngineFacts) -> None:
    """Check that every id is one of the vocabulary's.

    Raises: InputError: saying from where to where they reach.
    """
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < facts.vocabulary:
        raise InputError(
            f"token ids reach from {tokens.min()} to {tokens.max()}, the vocabulary has {facts.vocabulary:,}",
            where=facts.name,
        )


def require_prompt(prompt: Sequence[int], facts: EngineFacts) -> None:
    """Check that there is a prompt to go on from, of known tokens.

    Raises: InputError: it is empty, or holds an id that the model doesn't know.
    """
    require_known(np.asarray(prompt, dtype=np.int64), facts)
    if not len(prompt):
        raise InputError("an empty prompt can't be continued", where=facts.name)
