"""The weights of one layer, or the cell that stands in their place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from lstm_monitor.core.terms import Kind, OneLine

Step = Callable[[Any, Tensor, Any], tuple[Tensor, Any]]
"""``step(cell, inputs (N, I), state)`` returns ``(hidden (N, H), new_state)``."""


@dataclass(frozen=True, eq=False, repr=False)
class LayerWeights(OneLine):
    """The weights of one direction of one layer, in torch's layout; G row blocks of H rows.

    ``weight_ih (G*H, I)``, ``weight_hh (G*H, H)``, ``bias_ih`` and ``bias_hh (G*H,)``. Missing biases are
    zeros. With a projection ``weight_hr (P, H)`` the recurrence is folded, ``weight_hh = W_hh @ weight_hr``,
    so that a cell is always the unit before the projection.
    """

    kind: Kind
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor
    bias_hh: Tensor
    weight_hr: Tensor | None = None

    @property
    def hidden_size(self) -> int:
        """H, the number of cells."""
        return self.weight_hh.shape[1]

    @property
    def input_size(self) -> int:
        """I, the number of features that the layer reads."""
        return self.weight_ih.shape[1]

    @property
    def like(self) -> Tensor:
        """A tensor of the type and on the device that the layer computes in."""
        return self.weight_ih

    def from_mean(self, mean: Tensor) -> LayerWeights:
        """The same layer for inputs counted from ``mean (I,)``: the constant goes into the bias."""
        return replace(self, bias_ih=self.bias_ih + self.weight_ih @ mean.to(self.weight_ih))

    def along(self, directions: Tensor) -> LayerWeights:
        """The same layer for inputs in the coordinates of ``directions (I, D)``."""
        return replace(self, weight_ih=self.weight_ih @ directions.to(self.weight_ih))


@dataclass(frozen=True, eq=False, repr=False)
class CellWeights(OneLine):
    """A detached copy of a registered cell, which runs by its ``step``; it stands in the place of weights.

    Its inputs are ``offset (I,) + basis (I, D) @ x``, or ``offset + x`` without a basis. ``start``: the parts of the
    state of one sequence before its first step, each ``(1, ...)``; `step` takes the one part itself where it is `bare`.
    ``held``: such parts again, in which all other cells stand still while one runs `alone`.
    """

    cell: nn.Module
    step: Step
    hidden_size: int
    offset: Tensor
    start: tuple[Tensor, ...]
    held: tuple[Tensor, ...]
    bare: bool = True
    basis: Tensor | None = None
    alone: bool = False

    @property
    def kind(self) -> Kind:
        """It is of no kind of torch's."""
        return "custom"

    @property
    def input_size(self) -> int:
        """I, the number of features that the cell reads."""
        return len(self.offset)

    @property
    def like(self) -> Tensor:
        """A tensor of the type and on the device that the cell computes in."""
        return self.offset

    def from_mean(self, mean: Tensor) -> CellWeights:
        """The same cell for inputs counted from ``mean (I,)``."""
        return replace(self, offset=self.offset + mean.to(self.offset))

    def along(self, directions: Tensor) -> CellWeights:
        """The same cell for inputs in the coordinates of ``directions (I, D)``."""
        return replace(self, basis=directions.to(self.offset))
