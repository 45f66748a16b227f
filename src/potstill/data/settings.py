"""What a recipe may say about text: where it comes from, how much of it, and how it becomes tokens."""

from typing import Annotated, Literal

from pydantic import Field

from potstill.core.settings import Count, Settings

__all__ = [
    "Answers",
    "DataSettings",
    "DataStageSettings",
    "Docstrings",
    "Files",
    "Hub",
    "Source",
    "TeacherTokenizer",
    "Tokenizer",
    "TrainTokenizer",
]

_Paths = Annotated[tuple[str, ...], Field(min_length=1, strict=False)]


class Docstrings(Settings):
    """English prose from the docstrings of installed packages and of the standard library.

    ``packages`` names distributions as ``pip list`` does, and ``python`` for the standard library; None takes all.
    """

    kind: Literal["docstrings"] = "docstrings"
    packages: Annotated[tuple[str, ...], Field(min_length=1, strict=False)] | None = None


class Files(Settings):
    """Local files: ``.txt`` (paragraphs stand between blank lines), ``.jsonl`` and ``.parquet`` (one field a row).

    ``paths`` are files or globs, relative to the current directory; ``field`` may be dotted, as in ``answer.text``.
    """

    kind: Literal["files"]
    paths: _Paths
    field: str = Field(default="text", min_length=1)


class Hub(Settings):
    """A data set of the Hugging Face hub, streamed; only its data formats, never its code. Needs the extra ``hub``."""

    kind: Literal["hub"]
    id: str = Field(min_length=1)
    field: str = Field(default="text", min_length=1)
    split: str = Field(default="train", min_length=1)
    config: str | None = None
    revision: str | None = None
    rows: Annotated[Count, Field(gt=0)] = 100_000


class Answers(Settings):
    """What a teacher that nobody can load answered: the prompt is context only, the answer is learnt.

    ``paths`` are ``.jsonl`` or ``.parquet``; ``prompt`` and ``answer`` name fields, dotted where they lie deeper.
    """

    kind: Literal["answers"]
    paths: _Paths
    prompt: str = Field(default="prompt", min_length=1)
    answer: str = Field(default="answer", min_length=1)


Source = Annotated[Docstrings | Files | Hub | Answers, Field(discriminator="kind")]


class TrainTokenizer(Settings):
    """A byte-level BPE trained on the training side of the text."""

    kind: Literal["train"] = "train"
    vocabulary: Annotated[Count, Field(ge=257, le=1_000_000)] = 2048


class TeacherTokenizer(Settings):
    """The tokenizer of the teacher that the recipe loads."""

    kind: Literal["teacher"]


Tokenizer = Annotated[TrainTokenizer | TeacherTokenizer, Field(discriminator="kind")]


class DataSettings(Settings):
    """Text to rows of ``tokens_per_sentence`` tokens.

    A *sentence* of the recipe is one row: whole sentences of one paragraph, as many as fit. ``sentences`` is what the
    student sees.
    """

    source: Source = Docstrings()
    sentences: Annotated[Count, Field(gt=0)] = 4000
    validation_sentences: Annotated[Count, Field(gt=0)] = 500
    test_sentences: Annotated[Count, Field(gt=0)] = 500
    tokens_per_sentence: Annotated[Count, Field(ge=4, le=1_000_000)] = 50
    shortest_sentence: Annotated[Count, Field(ge=2)] = 12
    tokenizer: Tokenizer = TrainTokenizer()
    on_bad_input: Literal["refuse", "skip"] = "refuse"


class DataStageSettings(DataSettings):
    """What the data stage packs: the recipe's text, with more rows where a teacher trained here wants them.

    ``teacher_sentences``: "all" is every row there is; None as many as the student's.
    """

    teacher_sentences: Annotated[Count, Field(gt=0)] | Literal["all"] | None = None
