"""Tokenizers: trained on the recipe's text, or the teacher's own; and how a single token is shown to people."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from potstill.core.errors import InputError

__all__ = ["END_OF_TEXT", "TextCoder", "load_tokenizer", "token_text", "train_tokenizer"]

END_OF_TEXT = "<|endoftext|>"
_BATCH = 10_000


@dataclass(frozen=True)
class TextCoder:
    """A tokenizer with its beginning- and end-of-text ids; whatever stands in a text stays text."""

    tokenizer: PreTrainedTokenizerBase
    beginning_id: int
    end_id: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, *, where: str) -> "TextCoder":
        """Take the ids from the tokenizer; where it knows only one of the two, that one is both.

        Raises: InputError: it knows neither.
        """
        beginning = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else beginning
        if beginning is None or end is None:
            raise InputError("the tokenizer has neither a beginning- nor an end-of-text token", where=where)
        return cls(tokenizer, int(beginning), int(end))

    @property
    def vocabulary(self) -> int:
        return len(self.tokenizer)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, nothing added; a text that spells a special token gives ordinary tokens."""
        ids: list[list[int]] = []
        for first in range(0, len(texts), _BATCH):
            batch = list(texts[first : first + _BATCH])
            if isinstance(self.tokenizer, PreTrainedTokenizerFast):
                backend = self.tokenizer.backend_tokenizer
                backend.encode_special_tokens = True
                ids += [encoding.ids for encoding in backend.encode_batch_fast(batch, add_special_tokens=False)]
            else:
                ids += self.tokenizer(batch, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with GPT-2's pre-tokenizer; id 0 is ``<|endoftext|>``: beginning, end and padding in one.

    Deterministic: the same texts give the same bytes. Text too small for ``vocabulary`` gives fewer tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call] # transformers leaves it untyped
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face directory; its own code, if it has any, is never run.

    Raises: InputError: there is none, or it can't be read.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(f"holds no tokenizer that can be loaded: {error}", where=str(directory)) from error
    return tokenizer


def token_text(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    r"""A token as people read it; bytes that are no whole character show as ``\xNN``; an unknown id as ``<id 7>``."""
    if not 0 <= token_id < len(tokenizer):
        return f"<id {token_id}>"
    text = tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if "\ufffd" not in text:
        return str(text)
    spelling = str(tokenizer.convert_ids_to_tokens(token_id))
    if any(letter not in _BYTE_OF_LETTER for letter in spelling):
        return spelling
    return bytes(_BYTE_OF_LETTER[letter] for letter in spelling).decode("utf-8", "backslashreplace")


def _byte_of_letter() -> dict[str, int]:
    """How byte-level BPE spells bytes: printable ones as themselves, the others from U+0100 upwards, in order.

    Source: GPT-2, ``bytes_to_unicode``.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + rank): byte for rank, byte in enumerate(others)}


_BYTE_OF_LETTER = _byte_of_letter()
