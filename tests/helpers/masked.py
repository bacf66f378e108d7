"""A naive network without some of its cells: a copy, computed step by step, whose cells are set after every step.

Written apart from the library and from torch's fused kernels: it takes torch's parameters and nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from tests.helpers.unrolls import advance

Gone = Mapping[str, Sequence[int]]


class Masked(nn.Module):
    """In place of a recurrent module. ``gone``: by parameter suffix the cells and the values ``(H,)`` they stand at.

    ``seen``: by suffix the hidden states ``(N, H)``, before a projection, a list of steps for each call, in the order
    of the original time.
    """

    def __init__(self, module: nn.Module, gone: Mapping[str, tuple[Sequence[int], Tensor]]) -> None:
        super().__init__()
        self.inner, self.gone = module, dict(gone)
        self.seen: dict[str, list[list[Tensor]]] = {}
        self.batch_first = getattr(module, "batch_first", False)

    @property
    def kind(self) -> str:
        name = type(self.inner).__name__.removesuffix("Cell")
        return str(self.inner.nonlinearity) if name == "RNN" else name

    def held(self, suffix: str, h: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
        cells, values = self.gone.get(suffix, ((), torch.zeros(0)))
        h, c = h.clone(), None if c is None else c.clone()
        for cell in cells:
            h[:, cell] = values[cell].to(h)
            if c is not None:
                c[:, cell] = 0
        return h, c

    def scan(self, suffix: str, xs: list[Tensor], h: Tensor, c: Tensor | None) -> Any:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
        found = {name: getattr(self.inner, name + suffix, None) for name in names}
        p = {name: value.detach() for name, value in found.items() if isinstance(value, Tensor)}
        hr = p.pop("weight_hr", None)
        if hr is None:
            h, c = self.held(suffix, h, c)
        out, seen = [], []
        for x in xs:
            rows = [advance(self.kind, p, x[n], h[n], None if c is None else c[n]) for n in range(len(x))]
            h = torch.stack([row[0] for row in rows])
            c = None if c is None else torch.stack([row[1] for row in rows])
            h, c = self.held(suffix, h, c)
            seen.append(h)
            h = h if hr is None else h @ hr.T
            out.append(h)
        self.seen.setdefault(suffix, []).append(seen[::-1] if suffix.endswith("reverse") else seen)
        return out, h, c

    def forward(self, inputs: Any, hx: Any = None) -> Any:
        if not isinstance(self.inner, nn.RNNBase):
            return self.cell(inputs, hx)
        if not isinstance(inputs, PackedSequence):
            return self.steps(inputs, hx)
        padded, lengths = pad_packed_sequence(inputs, batch_first=True)
        outputs, finals = [], []
        for n, length in enumerate(lengths.tolist()):
            one = padded[n : n + 1, :length]
            out, final = self.steps(one if self.batch_first else one.transpose(0, 1), hx)
            outputs.append((out if self.batch_first else out.transpose(0, 1))[0])
            finals.append(final)
        packed = nn.utils.rnn.pad_sequence(outputs, batch_first=True)
        together = pack_padded_sequence(packed, lengths, batch_first=True, enforce_sorted=False)
        if self.kind == "LSTM":
            return together, tuple(torch.cat([final[k] for final in finals], 1) for k in (0, 1))
        return together, torch.cat(finals, 1)

    def cell(self, x: Tensor, hx: Any) -> Any:
        zeros = x.new_zeros(len(x), self.inner.hidden_size)
        two = self.kind == "LSTM"
        h, c = (hx if two else (hx, None)) if hx is not None else (zeros, zeros if two else None)
        _, h, c = self.scan("", [x], h, c)
        return (h, c) if two else h

    def steps(self, x: Tensor, hx: Any) -> Any:
        m, two, finals = self.inner, self.kind == "LSTM", []
        xs = list(x.transpose(0, 1) if m.batch_first else x)
        given = (None, None) if hx is None else hx if two else (hx, None)
        for index in range(m.num_layers):
            sides = []
            for reverse in (False, True)[: 1 + m.bidirectional]:
                suffix, place, count = f"_l{index}{'_reverse' if reverse else ''}", len(finals), len(xs[0])
                h = x.new_zeros(count, m.proj_size or m.hidden_size) if given[0] is None else given[0][place]
                c = x.new_zeros(count, m.hidden_size) if given[1] is None else given[1][place]
                out, h, c = self.scan(suffix, xs[::-1] if reverse else xs, h, c if two else None)
                sides.append(out[::-1] if reverse else out)
                finals.append((h, c))
            xs = [torch.cat(parts, -1) for parts in zip(*sides, strict=True)]
        out = torch.stack(xs, 1 if m.batch_first else 0)
        hidden = torch.stack([final[0] for final in finals])
        return out, (hidden, torch.stack([final[1] for final in finals])) if two else hidden


def masked(model: nn.Module, gone: Gone, means: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A copy in eval mode without these cells, at 0 or at their `means`; every recurrent module is unrolled."""
    model = copy.deepcopy(model).eval()
    for path, module in list(model.named_modules()):
        if not isinstance(module, nn.RNNBase | nn.RNNCellBase):
            continue
        own = {}
        for name, cells in gone.items():
            owner, _, last = name.rpartition(".") if isinstance(module, nn.RNNBase) else (name, "", "")
            if owner == path:
                values = torch.zeros(module.hidden_size) if means is None else means[name]
                own[f"_{last}" if last else ""] = (cells, values)
        stand = Masked(module, own)
        if not path:
            return stand
        parent, _, last = path.rpartition(".")
        setattr(model.get_submodule(parent), last, stand)
    return model


def rewritten(model: nn.Module, gone: Gone) -> nn.Module:
    """The plainest way, where no states are given: a copy in which the candidate's rows are zero."""
    model = copy.deepcopy(model).eval()
    for name, cells in gone.items():
        path, _, last = name.rpartition(".")
        module: Any = model.get_submodule(path)
        first = {"LSTM": 2, "GRU": 2, "RNN": 0}[type(module).__name__] * module.hidden_size
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            value = getattr(module, f"{kind}_{last}", None)
            if value is not None:
                value.data[[first + cell for cell in cells]] = 0
    return model
