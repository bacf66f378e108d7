"""Decoupled cells: each alone, with the input from all other cells frozen at their mean."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lstm_monitor.kernels.fused import State, run_fused
from lstm_monitor.records import LayerWeights

GROUP = 64


def decouple(weights: LayerWeights, hidden_mean: Tensor) -> LayerWeights:
    """The same cells with only their own recurrence; that of the others, at ``hidden_mean (H,)``, in the bias."""
    size = weights.hidden_size
    blocks = weights.weight_hh.reshape(-1, size, size)
    own = torch.diagonal(blocks, dim1=1, dim2=2)
    frozen = blocks @ hidden_mean - own * hidden_mean
    return replace(
        weights, weight_hh=torch.diag_embed(own).reshape(-1, size), bias_hh=weights.bias_hh + frozen.reshape(-1)
    )


def run_alone(weights: LayerWeights, inputs: Tensor, state: State) -> tuple[Tensor, State]:
    """`run_fused` for weights from `decouple`: the fused op on groups of 64 cells."""
    if weights.kind == "rnn_relu":
        return _scan_relu(weights, inputs, state[0])
    size = weights.hidden_size
    parts = [
        run_fused(
            _group(weights, slice(start, start + GROUP)), inputs, tuple(s[:, start : start + GROUP] for s in state)
        )
        for start in range(0, size, GROUP)
    ]
    if len(parts) == 1:
        return parts[0]
    hidden = torch.cat([hidden for hidden, _ in parts], dim=-1)
    return hidden, tuple(torch.cat(pieces, dim=-1) for pieces in zip(*(final for _, final in parts), strict=True))


def _scan_relu(weights: LayerWeights, inputs: Tensor, h: Tensor) -> tuple[Tensor, State]:
    """Elementwise, since these cells may overflow: in a matrix, infinity times another cell's zero is NaN."""
    own = weights.weight_hh.diagonal()
    hidden = []
    for driven in inputs @ weights.weight_ih.T + (weights.bias_ih + weights.bias_hh):
        h = torch.relu(driven + own * h)
        hidden.append(h)
    return torch.stack(hidden), (h,)


def _group(weights: LayerWeights, cells: slice) -> LayerWeights:
    size = weights.hidden_size

    def rows(tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (-1, size))[:, cells].flatten(0, 1)

    return replace(
        weights,
        weight_ih=rows(weights.weight_ih),
        weight_hh=rows(weights.weight_hh)[:, cells].contiguous(),
        bias_ih=rows(weights.bias_ih),
        bias_hh=rows(weights.bias_hh),
    )
