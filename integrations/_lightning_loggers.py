"""The loggers of a Trainer as sinks; a logger is known by the names of its classes, so none is imported."""

from __future__ import annotations

from functools import partial
from typing import Any

from lstm_monitor.report import Report
from lstm_monitor.sinks import Sink


def sinks_of(trainer: Any, pictures_every: int | None) -> list[Sink]:
    """A sink for each logger, on the process that logs: everything into TensorBoard, scalars into the others."""
    return [_sink_of(logger, pictures_every) for logger in trainer.loggers if trainer.is_global_zero]


def _sink_of(logger: Any, pictures_every: int | None) -> Sink:
    if "TensorBoardLogger" not in {base.__name__ for base in type(logger).__mro__}:
        return LoggerSink(logger)
    from lstm_monitor.integrations.tensorboard_sink import TensorBoardSink

    writer = partial(getattr, logger, "experiment")  # a logger opens its writer when it is first used
    return TensorBoardSink(writer=writer, pictures_every=pictures_every)


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
