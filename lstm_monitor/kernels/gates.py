"""Gates and cell state of a fused run: one matrix product, then an elementwise scan."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import linear

from lstm_monitor.records import LayerWeights


def gates_of(weights: LayerWeights, inputs: Tensor, hidden: Tensor, h0: Tensor) -> Mapping[str, Tensor]:
    """Every gate by name, ``(T, N, H)``, from ``inputs (T, N, I)``, ``hidden (T, N, H)`` and ``h0 (N, H)``."""
    if weights.kind.startswith("rnn"):
        return {"candidate": hidden}
    before = torch.cat([h0[None], hidden[:-1]])
    from_input = linear(inputs.contiguous(), weights.weight_ih, weights.bias_ih)
    from_hidden = linear(before, weights.weight_hh, weights.bias_hh)
    if weights.kind == "lstm":
        i, f, g, o = from_input.add_(from_hidden).chunk(4, -1)
        return {"input": i.sigmoid(), "forget": f.sigmoid(), "candidate": g.tanh(), "output": o.sigmoid()}
    a, b = from_input.chunk(3, -1), from_hidden.chunk(3, -1)
    r = (a[0] + b[0]).sigmoid()
    return {"reset": r, "update": (a[1] + b[1]).sigmoid(), "candidate": (a[2] + r * b[2]).tanh()}


def cell_of(gates: Mapping[str, Tensor], c0: Tensor) -> Tensor:
    """An LSTM's cell state ``(T, N, H)`` from its gates: ``c = f * c + i * g``; then ``o * tanh(c)`` is hidden."""
    added = gates["input"] * gates["candidate"]
    cell, states = c0, []
    for forget, new in zip(gates["forget"], added, strict=True):
        cell = torch.addcmul(new, forget, cell)
        states.append(cell)
    return torch.stack(states)
