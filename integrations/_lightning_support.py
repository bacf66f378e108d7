"""What the callback needs beside its hooks: a recorder for the user's forward pass, and keys that others monitor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from lstm_monitor.errors import nearest
from lstm_monitor.guard import tell
from lstm_monitor.monitor import LSTMMonitor
from lstm_monitor.recordings import Recorder
from lstm_monitor.report import PREFIX, Report, documented_keys


class GuardedRecorder(Recorder):
    """A recorder inside the user's own forward pass: an error of ours must not end that."""

    def __init__(self, modules: Iterable[nn.Module], monitor: LSTMMonitor) -> None:
        """Record as many steps as the monitor uses."""
        super().__init__(modules, monitor.held_out_steps)
        self.guard = monitor.guard

    def _hook(self, *call: Any) -> None:
        with self.guard.protect("Recording held-out inputs"):
            super()._hook(*call)


def monitored_keys(trainer: Any) -> list[str]:
    """Our keys that another callback or a learning rate scheduler of the Trainer monitors."""
    watching = [*trainer.callbacks, *trainer.lr_scheduler_configs]
    keys = (getattr(watcher, "monitor", None) for watcher in watching)
    return [key for key in keys if isinstance(key, str) and key.startswith(f"{PREFIX}/")]


def tell_unknown(keys: Iterable[str], report: Report) -> None:
    """One warning for each monitored key that is never logged: it would stay at 0 and stop the training early."""
    layers = [str(layer.key) for layer in report.layers]
    scalars = [key for key, kind, _ in documented_keys() if kind == "scalar"]
    known = {key.replace("<layer>", layer) for key in scalars for layer in layers}
    for key in set(keys) - known:
        tell(f"monitor={key!r} is no key of lstm_monitor, and stays at 0. {nearest(key, known)}")
