"""Naive recurrent modules: one sequence, one step at a time, by autograd, with a handle on every hidden state.

Written apart from the library: they take torch's parameters and nothing else. ``h = h + nudge`` with a nudge of 0 after
each step; the derivative by the nudge is the total derivative by that hidden state.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


@dataclass(eq=False)
class Seen:
    """A hidden state ``(H,)`` of one sequence of one call, the `read`-th that the layer reads, and its nudge."""

    call: int
    layer: str
    sequence: int
    read: int
    value: Tensor
    nudge: Tensor


def advance(kind: str, parameters: dict[str, Tensor], x: Tensor, h: Tensor, c: Tensor | None) -> Any:
    """One step of one sequence: the new hidden state before the projection, and the new cell state."""
    a = parameters["weight_ih"] @ x + parameters.get("bias_ih", 0)
    b = parameters["weight_hh"] @ h + parameters.get("bias_hh", 0)
    if kind == "LSTM":
        i, f, g, o = (a + b).chunk(4)
        assert c is not None
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    if kind == "GRU":
        (ar, az, an), (br, bz, bn) = a.chunk(3), b.chunk(3)
        r, z = (ar + br).sigmoid(), (az + bz).sigmoid()
        return (1 - z) * (an + r * bn).tanh() + z * h, None
    return (a + b).relu() if kind == "relu" else (a + b).tanh(), None


class Unrolled(nn.Module):
    """In place of an nn.LSTM, GRU or RNN or one of torch's cells."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = copy.deepcopy(module)
        self.batch_first = getattr(module, "batch_first", False)
        self.bidirectional = getattr(module, "bidirectional", False)
        self.calls = 0
        self.seen: list[Seen] = []

    @property
    def kind(self) -> str:
        name = type(self.inner).__name__.removesuffix("Cell")
        return str(self.inner.nonlinearity) if name == "RNN" else name

    def parameters_of(self, suffix: str) -> dict[str, Tensor]:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
        found = {name: getattr(self.inner, name + suffix, None) for name in names}
        return {name: value.detach() for name, value in found.items() if isinstance(value, Tensor)}

    def scan(self, layer: str, suffix: str, n: int, xs: list[Tensor], h: Tensor, c: Tensor | None) -> Any:
        parameters, out = self.parameters_of(suffix), []
        for read, x in enumerate(xs):
            h, c = advance(self.kind, parameters, x, h, c)
            nudge = torch.zeros_like(h, requires_grad=True)
            h = h + nudge
            self.seen.append(Seen(self.calls, layer, n, read, h.detach(), nudge))
            h = parameters["weight_hr"] @ h if "weight_hr" in parameters else h
            out.append(h)
        return out, h, c

    def forward(self, inputs: Any, hx: Any = None) -> Any:
        cell = not isinstance(self.inner, nn.RNNBase)
        result = self.cell(inputs, hx) if cell else self.whole(inputs, hx)
        self.calls += 1
        return result

    def cell(self, x: Tensor, hx: Any) -> Any:
        two = self.kind == "LSTM"
        rows = x.reshape(-1, x.shape[-1])
        size = self.inner.hidden_size
        states = (hx if two else (hx,)) if hx is not None else (x.new_zeros(len(rows), size),) * (1 + two)
        states = [state.reshape(-1, size) for state in states]
        done = [self.scan("", "", n, [row], states[0][n], states[1][n] if two else None) for n, row in enumerate(rows)]
        h = torch.stack([item[1] for item in done]).reshape(*x.shape[:-1], -1)
        return (h, torch.stack([item[2] for item in done]).reshape(*x.shape[:-1], -1)) if two else h

    def whole(self, inputs: Any, hx: Any) -> Any:
        m, two = self.inner, self.kind == "LSTM"
        packed = isinstance(inputs, PackedSequence)
        if packed:
            x, lengths = pad_packed_sequence(inputs, batch_first=True)
        else:
            x = inputs[None] if inputs.dim() == 2 else inputs if m.batch_first else inputs.transpose(0, 1)
            lengths = torch.full((len(x),), x.shape[1])
        given = [None, None] if hx is None else list(hx) if two else [hx, None]
        given = [s if s is None or s.dim() == 3 else s[:, None] for s in given]
        rows, h_n, c_n = [], [], []
        for n, length in enumerate(lengths.tolist()):
            out, h, c = self.sequence(n, list(x[n, :length]), given)
            rows.append(torch.cat([out, out.new_zeros(x.shape[1] - length, out.shape[1])]))
            h_n.append(h)
            c_n.append(c)
        out, h = torch.stack(rows), torch.stack(h_n, 1)
        c = torch.stack(c_n, 1) if two else None
        if packed:
            out = pack_padded_sequence(out, lengths, batch_first=True, enforce_sorted=False)
        elif inputs.dim() == 2:
            out, h, c = out[0], h[:, 0], None if c is None else c[:, 0]
        elif not m.batch_first:
            out = out.transpose(0, 1)
        return out, (h, c) if two else h

    def sequence(self, n: int, xs: list[Tensor], given: list[Any]) -> Any:
        m, finals, cells = self.inner, [], []
        for index in range(m.num_layers):
            sides = []
            for reverse in (False, True)[: 1 + m.bidirectional]:
                suffix, place = f"_l{index}{'_reverse' if reverse else ''}", len(finals)
                h = xs[0].new_zeros(m.proj_size or m.hidden_size) if given[0] is None else given[0][place, n]
                c = xs[0].new_zeros(m.hidden_size) if given[1] is None else given[1][place, n]
                out, h, c = self.scan(suffix[1:], suffix, n, xs[::-1] if reverse else xs, h, c)
                sides.append(out[::-1] if reverse else out)
                finals.append(h)
                cells.append(c)
            xs = [torch.cat(parts) for parts in zip(*sides, strict=True)]
        return torch.stack(xs), torch.stack(finals), torch.stack(cells) if self.kind == "LSTM" else None


def unrolled(model: nn.Module, *names: str) -> tuple[nn.Module, dict[str, Unrolled]]:
    """A copy of a model with the modules of these names unrolled."""
    twin = copy.deepcopy(model)
    made = {name: Unrolled(getattr(twin, name)) for name in names}
    for name, module in made.items():
        setattr(twin, name, module)
    return twin, made


def key_of(name: str, seen: Seen) -> str:
    """The library's name of the layer."""
    return f"{name}.{seen.layer}" if seen.layer else name
