"""What the callback records in the Trainer's own validation: what the layers receive, and how the network is called."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.utils.hooks import RemovableHandle

from lstm_monitor.changes import changed, uncompiled
from lstm_monitor.heldout import Run
from lstm_monitor.integrations._lightning_call import CallRecorder
from lstm_monitor.monitor import LSTMMonitor
from lstm_monitor.ranking import OF_THE_NETWORK
from lstm_monitor.recordings import Recorder, Recording
from lstm_monitor.undisturbed import undisturbed


class FirstCall:
    """The call of the network in the first validation batch of a fit, for rankings that need its output."""

    def __init__(self) -> None:
        """Nothing is recorded yet."""
        self.runs: tuple[Run, ...] = ()
        self._recorder: CallRecorder | None = None
        self._over = False

    def attach(self, monitor: LSTMMonitor, recurrent: Iterable[nn.Module]) -> list[RemovableHandle]:
        """Record this batch, if it is the first and the ranking needs it."""
        if self._over or monitor.model is None or monitor.rank_by not in OF_THE_NETWORK:
            return []
        self._over = True
        self._recorder = CallRecorder(monitor.model, recurrent, monitor.guard)
        return self._recorder.attach()

    def recordings(self, monitor: LSTMMonitor, recurrent: Iterable[nn.Module]) -> dict[nn.Module, Recording]:
        """What the layers receive in that batch now, with the weights as they are."""
        recorder = Recorder(recurrent, monitor.held_out_steps)
        with undisturbed(monitor.model):
            for run in self.runs:
                with recorder.batch(run.mask), changed([uncompiled()]):
                    run.call()
        return recorder.recordings()

    def detach(self) -> None:
        """The batch is over."""
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            self.runs = recorder.runs()
