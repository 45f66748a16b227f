"""What did the linears of a block see? Sums over the inputs of each, linears that read the same tensor sharing theirs.

Shapes: B rows, T tokens, P positions, I inputs of a linear.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["InputStatistics", "Observer"]


class InputStatistics:
    """Sums over the positions of one input.

    Shapes: squares_I, magnitudes_I, largest_I float64 (sum of x^2, sum of |x|, max |x|); hessian_II float64, the sum of
    x x^T, None where nobody asked for it.
    """

    def __init__(self, columns: int, *, hessian: bool) -> None:
        self.tokens = 0
        self.squares_I = torch.zeros(columns, dtype=torch.float64)
        self.magnitudes_I = torch.zeros(columns, dtype=torch.float64)
        self.largest_I = torch.zeros(columns, dtype=torch.float64)
        self.hessian_II = torch.zeros(columns, columns, dtype=torch.float64) if hessian else None

    def add(self, inputs_PI: Tensor) -> None:
        """Count more positions; products are summed in float32 for these, in float64 over all calls."""
        inputs_PI = inputs_PI.float()
        self.tokens += len(inputs_PI)
        magnitudes_PI = inputs_PI.abs()
        self.magnitudes_I += magnitudes_PI.sum(0)
        if len(inputs_PI):
            self.largest_I = torch.maximum(self.largest_I, magnitudes_PI.amax(0).double())
        if self.hessian_II is None:
            self.squares_I += inputs_PI.square().sum(0)
        else:
            with torch.autocast(inputs_PI.device.type, enabled=False):  # whoever calls may compute in bfloat16
                self.hessian_II += inputs_PI.T @ inputs_PI
            self.squares_I = self.hessian_II.diagonal()

    def count_lookups(self) -> None:
        """Count that rows of the weight are also read as they are, being embeddings: as much again, in no direction."""
        if self.hessian_II is not None:
            self.hessian_II.diagonal().add_(self.hessian_II.diagonal().mean())

    def divide(self, factors_I: Tensor) -> None:
        """What the sums are after each input is divided by its factor."""
        factors_I = factors_I.double()
        self.magnitudes_I = self.magnitudes_I / factors_I
        self.largest_I = self.largest_I / factors_I
        if self.hessian_II is None:
            self.squares_I = self.squares_I / factors_I.square()
        else:
            self.hessian_II = self.hessian_II / torch.outer(factors_I, factors_I)
            self.squares_I = self.hessian_II.diagonal()


class Observer:
    """Watches the linears of a block while it reads text; ``scored_BT`` tells which positions count.

    Which linears read the same tensor is seen at their first call: they then have one ``InputStatistics`` together.
    """

    def __init__(self, linears: Mapping[str, nn.Module], *, hessian: bool) -> None:
        self.of: dict[str, InputStatistics] = {}
        self.scored_BT = torch.zeros(0, 0, dtype=torch.bool)
        self._hessian = hessian
        self._seen: dict[int, tuple[Tensor, str]] = {}
        self._leaders: set[str] = set()
        self._hooks = [
            module.register_forward_pre_hook(self._hook(name), with_kwargs=False) for name, module in linears.items()
        ]

    def forget_tensors(self) -> None:
        """Let the tensors of the batch go; call after each."""
        self._seen.clear()

    def close(self) -> None:
        """Stop watching."""
        for hook in self._hooks:
            hook.remove()

    def _hook(self, name: str) -> Any:  # noqa: ANN401 - a forward pre-hook
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            read_BTI: Tensor = inputs[0]
            if name not in self.of:
                self._meet(name, read_BTI)
            if name in self._leaders:
                self.of[name].add(read_BTI[self.scored_BT])

        return hook

    def _meet(self, name: str, read_BTI: Tensor) -> None:
        known = self._seen.setdefault(id(read_BTI), (read_BTI, name))
        if known[1] == name:
            self._leaders.add(name)
            self.of[name] = InputStatistics(read_BTI.shape[-1], hessian=self._hessian)
        else:
            self.of[name] = self.of[known[1]]
