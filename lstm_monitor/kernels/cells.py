"""Cells that are each alone: what one needs of a layer's weights, as vectors over cells."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lstm_monitor.records import Kind, LayerWeights


@dataclass(frozen=True, eq=False)
class Cells:
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


def cells_of(weights: LayerWeights, hidden_mean: Tensor, mean: Tensor, directions: Tensor) -> Cells:
    """A layer's cells alone, around the inputs' ``mean (I,)``, for inputs along ``directions (I, D)``.

    What a cell receives from the others is frozen at ``hidden_mean (H,)``. Nothing of the size ``(H, H)`` is made.
    """
    size = weights.hidden_size
    blocks = weights.weight_hh.unflatten(0, (-1, size))
    own = torch.diagonal(blocks, dim1=1, dim2=2)
    frozen = (weights.weight_hh @ hidden_mean).unflatten(0, (-1, size)) - own * hidden_mean
    recurrent = weights.bias_hh.unflatten(0, (-1, size)) + frozen
    bias = (weights.bias_ih + weights.weight_ih @ mean.to(weights.like)).unflatten(0, (-1, size))
    drive = (weights.weight_ih @ directions.to(weights.like)).T.unflatten(1, (-1, size))
    inner = recurrent[2] if weights.kind == "gru" else None
    if inner is not None:
        recurrent = torch.cat([recurrent[:2], torch.zeros_like(recurrent[2:])])
    return Cells(weights.kind, own.contiguous(), bias + recurrent, inner, drive.contiguous())


def cells_in(cells: Cells, part: slice) -> Cells:
    """Some of the cells, as views."""
    inner = None if cells.inner is None else cells.inner[part]
    return replace(cells, own=cells.own[:, part], bias=cells.bias[:, part], inner=inner, drive=cells.drive[..., part])


def joined_cells(parts: list[Cells]) -> Cells:
    """The cells of several layers of one kind, driven along the same number of directions, as those of one."""
    if len(parts) == 1:
        return parts[0]
    inner = None if parts[0].inner is None else torch.cat([p.inner for p in parts if p.inner is not None])
    own, bias, drive = (torch.cat([getattr(p, name) for p in parts], dim=-1) for name in ("own", "bias", "drive"))
    return Cells(parts[0].kind, own, bias, inner, drive)
