"""A host: how one adapter is attached to a small training of its library."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import lstm_monitor as lm

FEATURES, CELLS, SEQUENCES, BATCH, BATCHES = 3, 6, 12, 4, 3


class Custom(nn.Module):
    """A user's own LSTM, one step at a time, with parameters of its own names."""

    def __init__(self, features: int, cells: int) -> None:
        super().__init__()
        self.hidden_size = cells
        self.gates = nn.Linear(features + cells, 4 * cells)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        i, f, g, o = self.gates(torch.cat([x, state[0]], -1)).chunk(4, -1)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


KINDS: dict[str, Callable[[int, int], nn.Module]] = {
    "LSTM": lambda i, h: nn.LSTM(i, h, batch_first=True),
    "GRU": lambda i, h: nn.GRU(i, h, batch_first=True),
    "RNN": lambda i, h: nn.RNN(i, h, batch_first=True),
    "LSTMCell": nn.LSTMCell,
    "GRUCell": nn.GRUCell,
    "RNNCell": nn.RNNCell,
    "two layers, dropout": lambda i, h: nn.LSTM(i, h, num_layers=2, dropout=0.2, batch_first=True),
    "bidirectional": lambda i, h: nn.GRU(i, h // 2, bidirectional=True, batch_first=True),
    "projection": lambda i, h: nn.LSTM(i, 2 * h, proj_size=h, batch_first=True),
    "own cell": Custom,
}
"""Kinds of recurrent parts that put out ``CELLS`` values a step."""


class Network(nn.Module):
    """Dropout, a recurrent part, a linear one: sequences ``(N, T, FEATURES)`` to one value each."""

    def __init__(self, kind: str = "LSTM", cells: int = CELLS) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.2)
        self.body = KINDS[kind](FEATURES, cells)
        self.head = nn.Linear(cells, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(x)
        if hasattr(self.body, "num_layers"):
            return self.head(self.body(x)[0][:, -1])
        zeros = x.new_zeros(len(x), self.body.hidden_size)
        is_lstm = not isinstance(self.body, nn.GRUCell | nn.RNNCell)
        state: Any = (zeros, zeros) if is_lstm else zeros
        for step in x.unbind(1):
            state = self.body(step, state)
        return self.head(state[0] if is_lstm else state)


def registered_own_cell() -> Any:
    """A context in which the monitor knows the user's own cell."""
    return lm.register_cell(Custom, step=_step, state=_start, input_size=FEATURES)


def _step(cell: Any, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    hidden, memory = cell(x, state)
    return hidden, (hidden, memory)


def _start(cell: Any, count: int) -> tuple[Tensor, Tensor]:
    zeros = cell.gates.weight.new_zeros(count, cell.hidden_size)
    return zeros, zeros


def data(steps: int, batches: int = BATCHES) -> tuple[Tensor, Tensor]:
    """Sequences ``(N, steps, FEATURES)`` and their targets ``(N, 1)``, from a generator of their own."""
    x = torch.randn(batches * BATCH, steps, FEATURES, generator=torch.Generator().manual_seed(3)).cumsum(1) / 2
    return x, x.mean((1, 2))[:, None]


def held_out(steps: int) -> Tensor:
    """Sequences that no training sees."""
    return torch.randn(8, steps, FEATURES, generator=torch.Generator().manual_seed(4)).cumsum(1) / 2


@dataclass
class Task:
    """One training: of a network, on so many batches an epoch and steps a sequence, with an error planted or not.

    ``error`` is raised by the user's own code in the second epoch, or with one epoch in the second batch. ``resumed``:
    go on where a training in the same folder has saved, up to ``epochs`` in all.
    """

    model: Any
    folder: Path
    epochs: int = 2
    batches: int = BATCHES
    steps: int = 7
    validation: bool = True
    error: BaseException | None = None
    save: bool = False
    resumed: bool = False
    calls: int = field(default=0, init=False)

    def step(self) -> None:
        """Called by the user's code in every training batch."""
        self.calls += 1
        if self.error is not None and self.calls == 2:
            raise self.error


class Host(abc.ABC):
    """One adapter and a training of the library that it is for."""

    name: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]] = tuple(KINDS)
    resumes: ClassVar[bool] = True
    swallows: ClassVar[tuple[type[BaseException], ...]] = ()
    """Errors of the user's code that the library itself turns into a normal end."""

    def model(self, kind: str, cells: int = CELLS) -> Any:
        """A new model of the library."""
        return Network(kind, cells)

    def rebuilt(self, model: Any, kind: str) -> Any:
        """The model, with a recurrent part of another size in the place of its own."""
        network = getattr(model, "network", model)
        network.body, network.head = KINDS[kind](FEATURES, 2 * CELLS), nn.Linear(2 * CELLS, 1)
        return model

    @abc.abstractmethod
    def make(self, **options: Any) -> Any:
        """The adapter's object, with options of LSTMMonitor."""

    @abc.abstractmethod
    def fit(self, task: Task, ours: Any | None) -> None:
        """Train, with our object attached if there is one."""

    def weights(self, task: Task) -> list[Tensor]:
        """What was trained."""
        return [value.detach().clone() for value in task.model.state_dict().values()]

    def report(self, ours: Any) -> Any:
        """The last report."""
        return ours.report
