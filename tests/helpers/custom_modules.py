"""Recurrent modules written by hand, for the tests of registered classes; and how they are registered."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lstm_monitor import LayerWeights

N, T, F, H = 6, 12, 3, 5
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
TORCH: dict[str, type[nn.Module]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN, "rnn_relu": nn.RNN}


class OwnCell(nn.Module):
    """An LSTM, GRU or RNN cell with parameters of its own names, its gates' blocks as torch has them."""

    def __init__(self, kind: str, features: int = F, size: int = H) -> None:
        super().__init__()
        self.kind, self.input_size, self.hidden_size = kind, features, size
        self.from_x = nn.Linear(features, GATES[kind] * size)
        self.from_h = nn.Linear(size, GATES[kind] * size)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        state = zero_state(self, len(x)) if state is None else state
        h = state[0] if self.kind == "lstm" else state
        a, b = self.from_x(x).chunk(GATES[self.kind], 1), self.from_h(h).chunk(GATES[self.kind], 1)
        if self.kind == "lstm":
            i, f, g, o = (one + other for one, other in zip(a, b, strict=True))
            c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
            return o.sigmoid() * c.tanh(), c
        if self.kind == "gru":
            r, z = (a[0] + b[0]).sigmoid(), (a[1] + b[1]).sigmoid()
            return (1 - z) * (a[2] + r * b[2]).tanh() + z * h
        return torch.tanh(a[0] + b[0]) if self.kind == "rnn_tanh" else torch.relu(a[0] + b[0])


class OwnLayer(nn.Module):
    """Whole sequences ``(N, T, I)`` through an `OwnCell`."""

    def __init__(self, kind: str, batch_first: bool = True) -> None:
        super().__init__()
        self.cell, self.batch_first = OwnCell(kind), batch_first

    @property
    def hidden_size(self) -> int:
        return self.cell.hidden_size

    def forward(self, sequences: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        state, outputs = zero_state(self.cell, sequences.shape[0]) if state is None else state, []
        for x in sequences.unbind(1):
            state = self.cell(x, state)
            outputs.append(state[0] if self.cell.kind == "lstm" else state)
        return torch.stack(outputs, 1), state


class NormCell(nn.Module):
    """An LSTM cell with layer norm inside, as no kind of torch's has it, and dropout while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size, self.mix = H, nn.Linear(F + H, 4 * H, bias=False)
        self.norm, self.drop = nn.LayerNorm(4 * H), nn.Dropout(0.5)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        i, f, g, o = self.norm(self.mix(torch.cat([x, state[0]], 1))).chunk(4, 1)
        c = f.sigmoid() * state[1] + i.sigmoid() * self.drop(g.tanh())
        return o.sigmoid() * c.tanh(), c


class Stepper(nn.Module):
    """A model that calls its cell step by step, and reads its last hidden state."""

    def __init__(self, cell: nn.Module, size: int = H) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(size, 1)

    def forward(self, x: Tensor) -> Tensor:
        state = zero_state(self.cell, len(x))
        for column in x.unbind(1):
            state = self.cell(column, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Reader(nn.Module):
    """A model that gives its sequences to one module."""

    def __init__(self, rnn: nn.Module, size: int = H) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(size, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def zero_state(cell: Any, count: int) -> Any:
    """The state of `count` sequences before their first step."""
    weight = next(cell.parameters())
    zeros = weight.new_zeros(count, cell.hidden_size)
    return (zeros, zeros) if getattr(cell, "kind", "lstm") == "lstm" else zeros


def step(cell: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """One step of an `OwnCell`, an `OwnLayer` or a `NormCell`."""
    new = getattr(cell, "cell", cell)(x, state)
    return (new[0] if isinstance(new, tuple) else new), new


def start(cell: Any, count: int) -> Any:
    """Where they start."""
    return zero_state(getattr(cell, "cell", cell), count)


def weights(module: Any) -> LayerWeights:
    """The weights of an `OwnCell` or an `OwnLayer`."""
    cell = getattr(module, "cell", module)
    return LayerWeights(cell.kind, cell.from_x.weight, cell.from_h.weight, cell.from_x.bias, cell.from_h.bias)


def torch_twin(cell: OwnCell) -> nn.Module:
    """torch's own module with the same weights, for ``(N, T, I)``."""
    options = {"nonlinearity": cell.kind[4:]} if cell.kind.startswith("rnn") else {}
    twin = TORCH[cell.kind](F, H, batch_first=True, **options).to(cell.from_x.weight.dtype)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    values = (cell.from_x.weight, cell.from_h.weight, cell.from_x.bias, cell.from_h.bias)
    twin.load_state_dict(dict(zip(names, values, strict=True)))
    return twin
