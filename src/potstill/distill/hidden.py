"""How far the student's hidden states are from the teacher's, block by block, through learned projections.

Shapes: B rows, T tokens, P scored positions, D the student's width, E the teacher's width.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.distill.settings import HiddenStates, block_pairs
from potstill.model.anatomy import blocks, decoder, watched_blocks

__all__ = ["HiddenMatching", "distance"]


class HiddenMatching(nn.Module):
    """Runs the teacher beside the student and compares their blocks; what it learns are the projections.

    The projections are a pure function of the seed and the two shapes; the teacher is no part of the module, so it is
    neither trained nor kept in a checkpoint.
    """

    def __init__(
        self, settings: HiddenStates, student: PreTrainedModel, teacher: PreTrainedModel, *, seed: int
    ) -> None:
        super().__init__()
        self._settings = settings
        self._pairs = block_pairs(settings.blocks, len(blocks(student)), len(blocks(teacher)))
        self._teacher = (teacher.eval().requires_grad_(requires_grad=False),)  # type: ignore[no-untyped-call] # a tuple hides it from Module
        generator = torch.Generator().manual_seed(seed)
        self.projections = nn.ModuleList()
        for _ in self._pairs:
            projection = nn.Linear(student.config.hidden_size, teacher.config.hidden_size, bias=False, device="meta")
            projection.to_empty(device="cpu")
            nn.init.normal_(projection.weight, std=student.config.hidden_size**-0.5, generator=generator)
            self.projections.append(projection)

    @property
    def student_blocks(self) -> tuple[int, ...]:
        """Which blocks of the student to watch."""
        return tuple(student for student, _ in self._pairs)

    def forward(self, student_states: Mapping[int, Tensor], tokens_BT: Tensor, scored_BT: Tensor) -> Tensor:
        """The weighted distance, a mean over the pairs of blocks, summed over the scored positions.

        Shapes: student_states block → [B, T, D]; scored_BT bool.
        Returns: float32 scalar without a unit; 0.0, with a gradient path, if nothing is scored.
        """
        (teacher,) = self._teacher
        with torch.no_grad(), watched_blocks(teacher, [block for _, block in self._pairs]) as teacher_states:
            decoder(teacher)(input_ids=tokens_BT, use_cache=False)
        total = torch.zeros((), device=tokens_BT.device)
        for projection, (student_block, teacher_block) in zip(self.projections, self._pairs, strict=True):
            projected_PE = projection(student_states[student_block][scored_BT])
            total = total + distance(projected_PE, teacher_states[teacher_block][scored_BT], self._settings.match).sum()
        return self._settings.weight * total / len(self._pairs)


def distance(projected_PE: Tensor, teacher_PE: Tensor, match: Literal["cosine", "mse"]) -> Tensor:
    """1 - the cosine of the angle, or the mean squared difference over the width: float32 [P]."""
    if match == "cosine":
        return 1.0 - nn.functional.cosine_similarity(projected_PE.float(), teacher_PE.float(), dim=-1)
    return (projected_PE.float() - teacher_PE.float()).square().mean(-1)
