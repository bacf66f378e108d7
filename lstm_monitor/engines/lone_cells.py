"""Cells that are each alone: what one needs of a layer's weights, as vectors over cells."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lstm_monitor.core.terms import GATES, Kind
from lstm_monitor.core.weights import LayerWeights


@dataclass(frozen=True, eq=False)
class LoneCells:
    """H cells of one kind, of one layer or of several, each with its own recurrence only; G gates in torch's order.

    ``own (G, H)``: the weight of a cell's hidden state on its own gate. ``bias (G, H)``: all that is constant. ``inner
    (H,)``: of a GRU the constant inside the reset gate's product (None for other kinds; ``bias`` then has what is
    outside it). ``drive (D, G, H)``: what one unit along each direction adds to each gate.

    LSTM: ``z = bias + signal * drive + own * h``, gates i, f, g, o. GRU: the candidate is
    ``tanh(bias + signal * drive + r * (inner + own * h))``, gates r, z, n.
    """

    kind: Kind
    own: Tensor
    bias: Tensor
    inner: Tensor | None
    drive: Tensor

    @property
    def hidden_size(self) -> int:
        """H, the number of cells."""
        return self.own.shape[-1]


@dataclass(frozen=True, eq=False, repr=False)
class LoneWeights(LayerWeights):
    """A layer of cells that are each alone: ``weight_hh (G*H, 1)`` holds each cell's own recurrence."""

    @property
    def hidden_size(self) -> int:
        """H, the number of cells."""
        return len(self.weight_hh) // len(GATES[self.kind])


def decouple(weights: LayerWeights, hidden_mean: Tensor) -> LoneWeights:
    """The same cells with only their own recurrence; that of the others, at ``hidden_mean (H,)``, in the bias."""
    own = weights.weight_hh.unflatten(0, (-1, weights.hidden_size)).diagonal(dim1=1, dim2=2)
    frozen = weights.weight_hh @ hidden_mean - (own * hidden_mean).flatten()
    bias = weights.bias_hh + frozen
    return LoneWeights(weights.kind, weights.weight_ih, own.reshape(-1, 1), weights.bias_ih, bias, weights.weight_hr)


def dense(weights: LayerWeights) -> LayerWeights:
    """The layer with its whole recurrent matrix ``(G*H, H)``, mostly zeros if its cells are alone."""
    if not isinstance(weights, LoneWeights):
        return weights
    matrix = torch.diag_embed(weights.weight_hh.view(-1, weights.hidden_size)).flatten(0, 1)
    return LayerWeights(weights.kind, weights.weight_ih, matrix, weights.bias_ih, weights.bias_hh, weights.weight_hr)


def cells_of(weights: LayerWeights, hidden_mean: Tensor, mean: Tensor, directions: Tensor) -> LoneCells:
    """A layer's cells alone, around the inputs' ``mean (I,)``, for inputs along ``directions (I, D)``.

    What a cell receives from the others is frozen at ``hidden_mean (H,)``. Nothing of the size ``(H, H)`` is made.
    """
    return cells_in_layer(decouple(weights, hidden_mean).from_mean(mean).along(directions))


def cells_in_layer(weights: LayerWeights) -> LoneCells:
    """The cells of a layer, each feature a direction."""
    own, drive, given, recurrent = (
        tensor.unflatten(-1, (-1, weights.hidden_size)).contiguous()
        for tensor in (weights.weight_hh[:, 0], weights.weight_ih.T, weights.bias_ih, weights.bias_hh)
    )
    if weights.kind != "gru":
        return LoneCells(weights.kind, own, given + recurrent, None, drive)
    return LoneCells(weights.kind, own, torch.cat([given[:2] + recurrent[:2], given[2:]]), recurrent[2], drive)


def cells_in(cells: LoneCells, part: slice) -> LoneCells:
    """Some of the cells, as views."""
    inner = None if cells.inner is None else cells.inner[part]
    return replace(cells, own=cells.own[:, part], bias=cells.bias[:, part], inner=inner, drive=cells.drive[..., part])


def joined_cells(parts: list[LoneCells]) -> LoneCells:
    """The cells of several layers of one kind, driven along the same number of directions, as those of one."""
    if len(parts) == 1:
        return parts[0]
    inner = None if parts[0].inner is None else torch.cat([p.inner for p in parts if p.inner is not None])
    own, bias, drive = (torch.cat([getattr(p, name) for p in parts], dim=-1) for name in ("own", "bias", "drive"))
    return LoneCells(parts[0].kind, own, bias, inner, drive)
