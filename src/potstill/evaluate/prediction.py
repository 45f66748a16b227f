"""What does a model think while it predicts the next token, and what do its compressed forms think?

Shapes: T tokens of the prompt, D width, V vocabulary.

Answers come through ``Engine``, as everywhere in this family. Only the look inside the student, block by block, needs
its PyTorch model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from potstill.core.errors import RecipeError
from potstill.core.trace import Trace
from potstill.data.sequences import PackedSequences
from potstill.data.tokenizer import TextCoder, token_text
from potstill.model import anatomy
from potstill.runtime.engine import Engine

__all__ = ["Prompt", "candidates", "draw_prompts", "inside", "predict", "read_prompts"]

NUM_VALUES = 8
"""How many numbers of an embedding or a hidden state are shown."""
NUM_CANDIDATES = 5
NUM_LENS = 3
MAX_PROMPT_TOKENS = 256
_SHORTEST, _LONGEST = 6, 16


@dataclass(frozen=True)
class Prompt:
    """Where a text stands still for the next token to be guessed; ``tokens`` begins with the beginning-of-text token.

    ``true_next`` is what really follows, None where nobody knows.
    """

    text: str
    tokens: tuple[int, ...]
    true_next: str | None


def read_prompts(texts: Sequence[str], coder: TextCoder, trace: Trace) -> list[Prompt]:
    """Encode the prompts of a recipe; of one with more than 256 tokens the last ones are kept, with a warning.

    Raises: RecipeError: a prompt has no tokens.
    """
    prompts = []
    for text, ids in zip(texts, coder.encode(texts), strict=True):
        if not ids:
            raise RecipeError(f"the prompt {text!r} has no tokens", where="evaluate.prompts")
        kept = ids[-MAX_PROMPT_TOKENS:]
        if len(kept) < len(ids):
            trace.warning(f"a prompt of {len(ids):,} tokens was cut to its last {MAX_PROMPT_TOKENS}: {text[:40]!r} ...")
        shown = text if len(kept) == len(ids) else str(coder.tokenizer.decode(kept))
        prompts.append(Prompt(shown, (coder.beginning_id, *kept), None))
    return prompts


def draw_prompts(
    sequences: PackedSequences, tokenizer: PreTrainedTokenizerBase, num_prompts: int, *, seed: int
) -> list[Prompt]:
    """Cut rows of held-out text, drawn by ``seed``, at a token that begins a word: the next one is the question.

    A cut lies at least 6 and, where the prompt of the row allows it, at most 16 tokens into the row, so that people
    can read it; rows too short for it are passed over, and so fewer prompts than asked for may come back.
    """
    generator = np.random.default_rng([seed, len(sequences)])
    prompts: list[Prompt] = []
    for row in generator.permutation(len(sequences)):
        if len(prompts) == num_prompts:
            break
        length = int(sequences.lengths_N[row])
        start = max(int(sequences.prompts_N[row]), _SHORTEST)
        tokens = [int(token) for token in sequences.tokens_NT[row, :length]]
        cuts = [cut for cut in range(start, min(length, start + _LONGEST - _SHORTEST + 1)) if cut <= MAX_PROMPT_TOKENS]
        words = [cut for cut in cuts if _begins_word(token_text(tokenizer, tokens[cut]))]
        if not words:
            continue
        cut = words[int(generator.integers(len(words)))]
        text = str(tokenizer.decode(tokens[1:cut]))
        prompts.append(Prompt(text, tuple(tokens[:cut]), token_text(tokenizer, tokens[cut])))
    return prompts


def predict(
    prompt: Prompt,
    student: PreTrainedModel,
    engines: Mapping[str, Engine],
    tokenizer: PreTrainedTokenizerBase,
    *,
    continuation_tokens: int,
) -> dict[str, Any]:
    """One entry of summary.json's ``predictions``: the look inside the student, and what every engine answers."""
    return {
        "prompt": prompt.text,
        "true_next": prompt.true_next,
        **inside(student, prompt.tokens, tokenizer),
        "candidates": {name: candidates(engine, prompt.tokens, tokenizer) for name, engine in engines.items()},
        "continuations": {
            name: str(tokenizer.decode(engine.generate(prompt.tokens, continuation_tokens)))
            for name, engine in engines.items()
        },
    }


def candidates(engine: Engine, tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """The five likeliest next tokens, likeliest first, of equals the lowest id first: token, id, probability, logit."""
    logits_V = engine.logits(np.array([tokens], dtype=np.int64))[0, -1].astype(np.float64)
    weights_V = np.exp(logits_V - logits_V.max())
    probabilities_V = weights_V / weights_V.sum()
    return [
        {
            "token": token_text(tokenizer, int(token)),
            "id": int(token),
            "probability": float(probabilities_V[token]),
            "logit": float(logits_V[token]),
        }
        for token in np.argsort(-logits_V, kind="stable")[:NUM_CANDIDATES]
    ]


@torch.inference_mode()
def inside(model: PreTrainedModel, tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The tokens with the first values of their embeddings, and the last position's hidden state after every block.

    Block 0 is what enters the first block. ``top`` reads each state as if it were the last one: final norm, then
    output head ("logit lens"); for the last block these are the model's own candidates.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    weight_VD = anatomy.embeddings(model).weight
    states = _states(model, torch.tensor([list(tokens)]))
    return {
        "tokens": [
            {"id": token, "text": token_text(tokenizer, token), "embedding": _values(weight_VD[token])}
            for token in tokens
        ],
        "blocks": [
            {
                "block": number,
                "rms": float(state_D.double().square().mean().sqrt()),
                "values": _values(state_D),
                "top": _lens(model, state_D, tokenizer),
            }
            for number, state_D in enumerate(states)
        ],
    }


def _states(model: PreTrainedModel, tokens_1T: Tensor) -> list[Tensor]:
    """The last position's residual stream [D]: what enters the first block, and what leaves each."""
    seen: list[Tensor] = []

    def before(_block: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append(arguments[0] if arguments else named["hidden_states"])

    def after(_block: nn.Module, _arguments: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401 - tensor or tuple
        seen.append(output[0] if isinstance(output, tuple) else output)

    blocks = anatomy.blocks(model)
    hooks = [blocks[0].register_forward_pre_hook(before, with_kwargs=True)]
    hooks += [block.register_forward_hook(after) for block in blocks]
    try:
        anatomy.hidden_states(model, tokens_1T)
    finally:
        for hook in hooks:
            hook.remove()
    return [state_1TD[0, -1] for state_1TD in seen]


def _lens(model: PreTrainedModel, state_D: Tensor, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    logits_V = anatomy.logits_of(model, anatomy.final_norm(model)(state_D.unsqueeze(0)))[0].double()
    probabilities_V = logits_V.softmax(-1)
    top = torch.sort(logits_V, descending=True, stable=True).indices[:NUM_LENS]
    return [{"token": token_text(tokenizer, int(token)), "probability": float(probabilities_V[token])} for token in top]


def _values(vector_D: Tensor) -> list[float]:
    return [round(float(value), 6) for value in vector_D[:NUM_VALUES]]


def _begins_word(text: str) -> bool:
    return len(text) > 1 and text[0] in " ␣Ġ▁" and text[1].isalpha()
