"""The loggers of a Trainer as sinks; a logger is known by the names of its classes, so none is imported."""

from __future__ import annotations

from functools import partial
from typing import Any

from lstm_monitor.report import Report
from lstm_monitor.sinks import Sink


def sinks_of(trainer: Any, pictures_every: int | None) -> list[Sink]:
    """A sink for the scalars of each logger, and one for TensorBoard's pictures and histograms."""
    sinks: list[Sink] = []
    for logger in trainer.loggers:
        sinks.append(LoggerSink(logger))
        names = {base.__name__ for base in type(logger).__mro__}
        if "TensorBoardLogger" in names and trainer.is_global_zero:
            from lstm_monitor.integrations.tensorboard_sink import TensorBoardSink

            writer = partial(getattr, logger, "experiment")  # a logger opens its writer when it is first used
            sinks.append(TensorBoardSink(writer=writer, scalars=False, pictures_every=pictures_every))
    return sinks


class LoggerSink:
    """Scalars through a Lightning logger's own method."""

    def __init__(self, logger: Any) -> None:
        """The user's logger; it is not closed here."""
        self.logger = logger

    def write(self, report: Report) -> None:
        """Log the report's scalars at its step."""
        self.logger.log_metrics(report.scalars(), step=report.step)

    def close(self) -> None:
        """Nothing to do: the Trainer finalizes its loggers."""
