"""The monitor as a handler of PyTorch Ignite."""

from __future__ import annotations

import ignite.distributed as idist
from ignite.engine import Engine, Events
from torch import nn

from lstm_monitor.integrations._trainer_callback import Hosted
from lstm_monitor.report.report import Report


class IgniteLSTMMonitor(Hosted):
    """Watches the recurrent layers of a model that an Ignite engine trains.

    ``IgniteLSTMMonitor(held_out=x_val, sinks=[TensorBoardSink("runs/a")]).attach(trainer, model)``. Takes the
    options of `LSTMMonitor`, which is also where they are explained. Steps are the engine's iterations.

    The scalars of the last check are in ``trainer.state.metrics`` by their keys. ``Checkpoint({..., "monitor":
    monitor}, ...)`` saves what it remembers, and ``Checkpoint.load_objects`` gives it back before a resumed run.

    Raises:
        TypeError: an option that does not exist.
        ValueError: a value that is not allowed.
    """

    left_out = (*Hosted.left_out, "_engine")

    def attach(self, trainer: Engine, model: nn.Module) -> None:
        """Watch `model` whenever `trainer` runs; with several processes in the first one only."""
        trainer.add_event_handler(Events.STARTED, self._started, model)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._iterated)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_ended)
        trainer.add_event_handler(Events.TERMINATE, self._terminated)
        trainer.add_event_handler(Events.COMPLETED, self.finish)
        trainer.add_event_handler(Events.EXCEPTION_RAISED, self._raised)

    def show(self, report: Report) -> None:
        """Into the engine's metrics."""
        self._engine.state.metrics.update(report.scalars())

    def _started(self, trainer: Engine, model: nn.Module) -> None:
        if idist.get_rank() == 0:
            self._engine, state = trainer, trainer.state
            self.begin(model, state.iteration, state.epoch, go_on=state.iteration > 0)
            self.first()

    def _iterated(self, trainer: Engine) -> None:
        self.stepped(trainer.state.iteration)

    def _terminated(self, trainer: Engine) -> None:
        if trainer.should_terminate == "skip_completed":
            self.finish()

    def _raised(self, trainer: Engine, error: BaseException) -> None:
        """Close the sinks. An engine without such a handler raises; with one, that is the handlers' to decide."""
        self.close()
        if len(trainer._event_handlers[Events.EXCEPTION_RAISED]) == 1:
            raise error
