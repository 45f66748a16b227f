"""How is a tokenizer refused that llama.cpp can't reproduce?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.core.errors import InputError

__all__ = ["cannot_be_carried", "refuse_variations_of_bpe"]


def cannot_be_carried(what: str, path: Path) -> InputError:
    """The error that names what llama.cpp lacks."""
    return InputError(
        f"{what} can't be carried into GGUF without changing how text is cut",
        where=str(path),
        next_step=(
            "potstill carries byte-level BPE cut as GPT-2, SmolLM, Llama 3 or Qwen 2 do, and BPE with byte fallback "
            "whose spaces are ▁, as in Llama 2, Phi-3 and Gemma"
        ),
    )


def refuse_variations_of_bpe(model: Mapping[str, Any], path: Path) -> None:
    """Check that a model is BPE without what changes merges.

    Raises: InputError: naming what it has.
    """
    if model["type"] != "BPE":
        raise cannot_be_carried(f"a {model['type']} model", path)
    for field in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(field):
            raise cannot_be_carried(f"BPE with {field} {model[field]!r}", path)
