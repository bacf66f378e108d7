"""The loggers of a Trainer as sinks; a logger is known by the names of its classes, so none is imported."""

from __future__ import annotations

from functools import partial
from typing import Any

from lstm_monitor.report.report import Report
from lstm_monitor.report.sinks import Sink


def sinks_of(trainer: Any, pictures_every: int | None) -> list[Sink]:
    """A sink for each logger, on the process that logs: everything into TensorBoard and W&B, scalars into others."""
    return [_sink_of(logger, pictures_every) for logger in trainer.loggers if trainer.is_global_zero]


def _sink_of(logger: Any, pictures_every: int | None) -> Sink:
    names = {base.__name__ for base in type(logger).__mro__}
    experiment = partial(getattr, logger, "experiment")  # a logger opens its writer or run when it is first used
    if "TensorBoardLogger" in names:
        from lstm_monitor.integrations.tensorboard_sink.sink import TensorBoardSink

        return TensorBoardSink(writer=experiment, pictures_every=pictures_every)
    if "WandbLogger" in names:
        from lstm_monitor.integrations.wandb_sink.sink import WandbSink

        return WandbSink(experiment, pictures_every=pictures_every)
    return LoggerSink(logger)


class LoggerSink:
    """Scalars through a Lightning logger's own method."""

    def __init__(self, logger: Any) -> None:
        """The user's logger; it is not closed here."""
        self.logger, self.name = logger, f"LoggerSink ({type(logger).__name__})"

    @property
    def directory(self) -> str | None:
        """The logger's folder, if it has one for each run."""
        return getattr(self.logger, "log_dir", None)

    def write(self, report: Report) -> None:
        """Log the report's scalars at its step."""
        self.logger.log_metrics(report.scalars(), step=report.step)

    def close(self) -> None:
        """Nothing to do: the Trainer finalizes its loggers."""
