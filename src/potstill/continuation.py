"""Going on from a text: which tokens a model gets, and which text its likeliest next tokens are."""

from pathlib import Path

from potstill.core.errors import InputError
from potstill.data.tokenizer import TextCoder, load_tokenizer
from potstill.runtime.llama_cpp import LlamaCppEngine
from potstill.runtime.table import open_engine

__all__ = ["continue_text"]


def continue_text(path: Path, prompt: str, num_tokens: int) -> str:
    """The text of ``num_tokens`` likeliest next tokens after the beginning-of-text token and ``prompt``.

    A GGUF file brings its tokenizer along; a directory's stands in it.

    Raises: InputError: no model there, or no tokenizer. ResourceError: its runtime isn't installed.
    """
    with open_engine(path) as engine:
        if isinstance(engine, LlamaCppEngine):
            beginning = engine.beginning_id
            tokens = [] if beginning is None else [beginning]
            return engine.detokenize(engine.generate(tokens + engine.tokenize(prompt), num_tokens))
        coder = TextCoder.of(load_tokenizer(path), where=str(path))
        (prompt_tokens,) = coder.encode([prompt])
        text = coder.tokenizer.decode(engine.generate([coder.beginning_id, *prompt_tokens], num_tokens))
        if not isinstance(text, str):
            raise InputError("the tokenizer gives no text", where=str(path))
        return text
