"""What the tests of the adapters for trainers share."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

import lstm_monitor as lm
from lstm_monitor.core.guard import MonitorWarning
from tests.helpers.trainings import HORIZON, sequences

DATA = sequences(count=48)
TARGETS = DATA[:, -1:, 0]
HELD_OUT = sequences(1, count=8)
KEY = "lstm_monitor/rnn.l0/gates/saturation/p50"
STRICT: dict[str, Any] = {"on_error": "raise", "horizon": HORIZON, "budget": None}


class Closing(lm.MemorySink):
    """Knows how often it was closed."""

    closed = 0

    def close(self) -> None:
        self.closed += 1


def places(sink: lm.MemorySink) -> list[tuple[int | None, int | None]]:
    """Step and epoch of every report, the ablation check's marked by layers of none left out."""
    return [(report.step, report.epoch) for report in sink.reports if report.layers]


def studies(sink: lm.MemorySink) -> int:
    """How many ablation checks arrived."""
    return sum(report.study is not None for report in sink.reports)


def squared_errors(model: torch.nn.Module) -> torch.Tensor:
    """A score of `Network`, one a sequence."""
    return (model(HELD_OUT) - HELD_OUT[:, -1:, 0]).square().mean(1)


def quick(score: Any = squared_errors) -> lm.AblationCheck:
    """An ablation check of a second."""
    return lm.AblationCheck(score=score, rankings=["output_sensitivity"], random_orders=1, points=3, seconds=2)


def warned_once(train: Callable[[], Any]) -> Any:
    """What `train` returns; it gave one warning of ours."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", MonitorWarning)
        trained = train()
    assert len([item for item in seen if issubclass(item.category, MonitorWarning)]) == 1
    return trained
