"""How a model is trained: settings shared by the teacher, the student, its plain twin and the healing after pruning."""

from typing import Annotated, Literal

from pydantic import Field

from potstill.core.errors import RecipeError
from potstill.core.settings import Count, Settings
from potstill.distill.settings import ForwardKl, Loss, hidden_states_of, needs_labels

__all__ = [
    "GrowFrom",
    "LoadedTeacher",
    "Machine",
    "ParallelKind",
    "Precision",
    "StudentSettings",
    "TeacherChoice",
    "TrainedTeacher",
    "TrainingSettings",
    "check_growth",
    "default_learning_rate",
    "teacher_in_doubt",
    "twins_wanted",
]

Precision = Literal["float32", "bfloat16"]
"""What matrix products are computed in; weights, their optimiser state and losses are always float32."""


ParallelKind = Literal["ddp", "fsdp"]
"""What several processes keep of a model in training: "ddp" all of it each, "fsdp" a share each (FSDP2)."""


class Machine(Settings):
    """What the work is computed on and in, and the seed of every random draw.

    ``precision``: of matrix products while training; "auto" is bfloat16 where the hardware multiplies it natively.
    ``parallel``: what each of several processes keeps of a model in training; a process alone keeps it all.
    """

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    parallel: ParallelKind = "ddp"


class TrainingSettings(Settings):
    """One run of the training loop.

    ``learning_rate``: its peak; null = 2e-3 x (2M / parameters)^0.3. ``patience``: stop after so many epochs without a
    lower validation loss; null = never. The weights of the epoch with the lowest validation loss are kept.
    """

    epochs: Annotated[int, Field(ge=1, le=10_000)] = 10
    batch_sentences: Annotated[int, Field(ge=1)] = 32
    micro_batch_sentences: Annotated[int, Field(ge=1)] | None = None
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    warmup_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    final_learning_rate_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0
    patience: Annotated[int, Field(ge=1)] | None = None


def default_learning_rate(parameters: int) -> float:
    """2e-3 x (2M / parameters)^0.3: the peak rates that measured well from 1 M to 110 M parameters."""
    return float(2e-3 * (2e6 / parameters) ** 0.3)


class GrowFrom(Settings):
    """A shallower model of the same width to train first, for so many epochs; then it grows to the full depth.

    What the deep model needn't learn from nothing costs a share ``blocks`` / all blocks of its time.
    """

    blocks: Annotated[int, Field(ge=1)]
    epochs: Annotated[int, Field(ge=1, le=10_000)]
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None


class TrainedTeacher(TrainingSettings):
    """A Llama of about so many parameters, trained here to predict the next token.

    ``sentences``: how many rows it sees, the student's first; "all" is every row of the text, null the student's only.
    A teacher that has seen no more text than its student has little to teach.
    """

    kind: Literal["train"] = "train"
    parameters: Annotated[Count, Field(gt=0)] = 3_000_000
    sentences: Annotated[Count, Field(gt=0)] | Literal["all"] | None = None
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 4
    grow_from: GrowFrom | None = None


class LoadedTeacher(Settings):
    """Any causal LM in safetensors: a Hugging Face directory or a hub id."""

    kind: Literal["load"]
    model: Annotated[str, Field(min_length=1)]


TeacherChoice = Annotated[TrainedTeacher | LoadedTeacher, Field(discriminator="kind")]


class StudentSettings(TrainingSettings):
    """The small model and how it learns.

    ``from``: "scratch", or "teacher" for an embedding table that starts as the teacher's, projected. ``twin``: also
    train the same student, from the same initial weights, without the teacher: true = once for as many steps and once
    for as long as distilling took, "steps" = only the former; null = true if there is a teacher.
    """

    parameters: Annotated[Count, Field(gt=0)] = 500_000
    start: Annotated[Literal["scratch", "teacher"], Field(alias="from")] = "scratch"
    losses: tuple[Loss, ...] = (ForwardKl(),)
    twin: bool | Literal["steps"] | None = None


def check_growth(grow: GrowFrom, blocks: int) -> None:
    """Refuse a start that isn't shallower than the teacher of ``blocks`` blocks.

    Raises: RecipeError.
    """
    if grow.blocks >= blocks:
        raise RecipeError(
            f"{grow.blocks} blocks are no fewer than the teacher's {blocks}",
            where="teacher.grow_from.blocks",
            next_step=f"ask for at most {blocks - 1}, or for no grow_from",
        )


def twins_wanted(student: StudentSettings, *, has_teacher: bool) -> Literal["both", "steps"] | None:
    """Which plain twins are trained too: as asked for, else both if there is a teacher to compare with."""
    if student.twin == "steps":
        return "steps"
    taught = needs_labels(student.losses) or hidden_states_of(student.losses) is not None
    wanted = has_teacher and taught if student.twin is None else student.twin
    return "both" if wanted else None


def teacher_in_doubt(teacher: TeacherChoice | None, student: StudentSettings, num_sentences: int) -> str | None:
    """Why a teacher can't be expected to be better than its student without it, where the recipe alone tells.

    A teacher trained here that is no larger, and reads no other rows and no more of them in all its epochs.
    """
    if not isinstance(teacher, TrainedTeacher) or teacher.sentences == "all":
        return None
    rows = num_sentences if teacher.sentences is None else teacher.sentences
    epochs = teacher.epochs + (teacher.grow_from.epochs if teacher.grow_from is not None else 0)
    if teacher.parameters > student.parameters or rows > num_sentences:
        return None
    if rows * epochs > num_sentences * student.epochs:
        return None
    return (
        f"the teacher has {teacher.parameters:,} parameters and reads {rows * epochs:,} rows, its student "
        f"{student.parameters:,} and {num_sentences * student.epochs:,}, the same among them: nothing says that the "
        "teacher will be the better one; make it larger, or give it more text (teacher.sentences)"
    )
