"""Which of the two Lightning packages a callback has to belong to: the one that the user has imported."""

from __future__ import annotations

import sys
from functools import cache
from importlib.util import find_spec
from typing import Any


def callback_class() -> Any:
    """The callback for the package in use; with both loaded, one class that belongs to both.

    Raises:
        ImportError: neither package is installed.
    """
    loaded: list[str] = [name for name in ("lightning.pytorch", "pytorch_lightning") if name in sys.modules]
    if not loaded:
        loaded = [name for name in ("lightning", "pytorch_lightning") if find_spec(name) is not None][:1]
    if not loaded:
        raise ImportError('LSTMMonitorCallback needs Lightning: pip install "lstm-monitor[lightning]"')
    if len(loaded) == 2:
        return _for_both()
    if loaded[0].startswith("lightning"):
        from lstm_monitor.integrations import lightning_callback

        return lightning_callback.LSTMMonitorCallback
    from lstm_monitor.integrations import pytorch_lightning_callback

    return pytorch_lightning_callback.LSTMMonitorCallback


@cache
def _for_both() -> Any:
    from lstm_monitor.integrations import both_lightning_callback

    return both_lightning_callback.LSTMMonitorCallback
