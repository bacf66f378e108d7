"""What the callback records in the Trainer's own validation: what the layers receive, and how the network is called."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.utils.hooks import RemovableHandle

from lstm_monitor.heldout import Run
from lstm_monitor.integrations._lightning_call import CallRecorder
from lstm_monitor.monitor import LSTMMonitor
from lstm_monitor.ranking import OF_THE_NETWORK


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

    def detach(self) -> None:
        """The batch is over."""
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            self.runs = recorder.runs()
