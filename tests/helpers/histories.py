"""Reports to keep, and a way to see that two records are the same to the last bit."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lstm_monitor as lm
from lstm_monitor.history.sink import HistorySink


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two records differ: in type, dtype, shape or any value; NaN equals NaN."""
    if type(one) is not type(other):
        return [f"{path}: {type(one).__name__} is {type(other).__name__}"]
    if isinstance(one, Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape and bool(((one == other) | (one != one)).all())
        return [] if same and torch.equal(one != one, other != other) else [path]
    if is_dataclass(one):
        return [
            d
            for f in fields(one)
            for d in differences(getattr(one, f.name), getattr(other, f.name), f"{path}.{f.name}")
        ]
    if isinstance(one, tuple):
        if len(one) != len(other):
            return [f"{path}: {len(one)} is {len(other)}"]
        return [d for i, pair in enumerate(zip(one, other, strict=True)) for d in differences(*pair, f"{path}.{i}")]
    return [] if one == other or (one != one and other != other) else [f"{path}: {one!r} is {other!r}"]


class Net(nn.Module):
    """A recurrent layer of six cells under a linear reader."""

    def __init__(self, kind: str = "LSTM", **options: Any) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(3, 6, batch_first=True, **options)
        self.head = nn.Linear(6 * (1 + self.rnn.bidirectional), 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def sequences(count: int = 8) -> Tensor:
    return torch.randn(count, 12, 3, generator=torch.Generator().manual_seed(1))


@cache
def a_report() -> lm.Report:
    return lm.characterize(Net(), held_out=sequences(), horizon=32)


def check_at(step: int | None, epoch: int | None = 0, checks: int = 1) -> lm.Report:
    """The report of a check that was not really made then."""
    return replace(a_report(), step=step, epoch=epoch, checks=checks)


def study_at(step: int, epoch: int = 0) -> lm.Report:
    """A report without layers, as sinks get it at the end of a training."""
    from tests.helpers.studies import layer, study, trial

    return lm.Report((), step, epoch, study=study(layer(trial())))


def kept(folder: Path | str, *reports: lm.Report) -> HistorySink:
    """A sink that wrote these reports as one attempt, and was closed."""
    sink = HistorySink(folder)
    for report in reports:
        sink.write(report)
    sink.close()
    return sink


def train(model: nn.Module, sinks: list[Any], held_out: Tensor | None = None, **options: Any) -> lm.LSTMMonitor:
    """Two epochs of three steps, a check after every second step and each epoch."""
    settings: dict[str, Any] = {
        "every_n_steps": 2,
        "every_n_epochs": 1,
        "horizon": 32,
        "budget": None,
        "on_error": "raise",
    } | options
    monitor = lm.LSTMMonitor(model, held_out, sinks=sinks, **settings)
    optimizer, x = torch.optim.SGD(model.parameters(), lr=0.1), sequences()
    monitor.on_train_begin()
    for epoch in range(2):
        for batch in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            monitor.on_train_batch_end(batch)
        monitor.on_epoch_end(epoch)
    monitor.on_train_end()
    return monitor
