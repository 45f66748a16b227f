"""The student before its first lesson: a Llama by parameter budget, fresh or with the teacher's sense of words.

Shapes: V vocabulary, D the teacher's width, E the student's width.
"""

from typing import Literal

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel

from potstill.core.errors import BugError, InputError
from potstill.model.anatomy import embeddings
from potstill.model.build import INITIAL_STD, build_llama
from potstill.model.shapes import shape_for_budget

__all__ = ["build_student", "project_embeddings"]

_ROWS = 8192
_MOST_PADDING = 1024
"""Embedding tables are padded to sizes that kernels like; rows beyond the vocabulary, up to so many, mean nothing."""


def build_student(
    parameters: int,
    *,
    start: Literal["scratch", "teacher"],
    teacher: PreTrainedModel | None,
    vocabulary: int,
    seed: int,
    max_position_embeddings: int = 1024,
    beginning_id: int = 0,
    end_id: int = 0,
) -> LlamaForCausalLM:
    """A float32 Llama of the budget's shape, whichever way it starts, so that both ways compare.

    From scratch, every weight is random. From the teacher, the embeddings (and with them the tied output head) are the
    teacher's, projected; the blocks are random, and the same as from scratch.

    Raises: RecipeError: the budget is too small for the vocabulary. InputError: the teacher has another vocabulary.
    """
    model = build_llama(
        shape_for_budget(parameters, vocabulary),
        seed=seed,
        max_position_embeddings=max_position_embeddings,
        beginning_id=beginning_id,
        end_id=end_id,
    )
    if start == "scratch":
        return model
    if teacher is None:
        raise BugError("a student that starts from its teacher was asked for without a teacher")
    table_VD = embeddings(teacher).weight.detach()
    if not vocabulary <= len(table_VD) <= vocabulary + _MOST_PADDING:
        raise InputError(
            f"the teacher has embeddings of {len(table_VD):,} tokens, the text uses a vocabulary of {vocabulary:,}",
            next_step="tokenize with the teacher's tokenizer (data.tokenizer: {kind: teacher}), or start from scratch",
        )
    with torch.no_grad():
        weight_VE = embeddings(model).weight
        projected_VE = project_embeddings(table_VD[:vocabulary], weight_VE.shape[1], seed=seed)
        weight_VE[:, : projected_VE.shape[1]] = projected_VE
    return model


def project_embeddings(table_VD: Tensor, width: int, *, seed: int) -> Tensor:
    """The table [V, E] whose dot products are nearest to the given one's, up to a factor: truncated SVD, rotated.

    U S of the largest singular values is the best approximation of that rank, and so is any rotation of it. A random
    rotation spreads the few strong directions over all columns, as in fresh weights; unrotated, the first columns
    would drown the others in every group that is quantized together.

    Shapes: result float32 [V, min(E, D)], standard deviation 0.02.
    Cost: one D x D eigendecomposition in float64.
    Source: Eckart & Young 1936.
    """
    kept = min(width, table_VD.shape[1])
    table_VD = table_VD.cpu()
    gram_DD = torch.zeros(table_VD.shape[1], table_VD.shape[1], dtype=torch.float64)
    for rows_RD in torch.split(table_VD, _ROWS):
        gram_DD += rows_RD.double().T @ rows_RD.double()
    axes_DE = torch.linalg.eigh(gram_DD).eigenvectors[:, -kept:]
    generator = torch.Generator().manual_seed(seed)
    rotation_EE = torch.linalg.qr(torch.randn(kept, kept, dtype=torch.float64, generator=generator)).Q
    projection_DE = axes_DE @ rotation_EE
    projected_VE = torch.cat([(rows_RD.double() @ projection_DE).float() for rows_RD in torch.split(table_VD, _ROWS)])
    return projected_VE * (INITIAL_STD / projected_VE.square().mean().sqrt().clamp_min(1e-30))
