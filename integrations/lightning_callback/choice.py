"""Which of the two Lightning packages a callback has to belong to: the one that the user has imported."""

from __future__ import annotations

import sys
from functools import cache
from importlib.util import find_spec
from typing import Any

PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def callback_class() -> Any:
    """The callback for the package in use; one class for both where both are loaded, or installed and none loaded.

    Raises:
        ImportError: neither package is installed.
    """
    names = [name for name in PACKAGES if sys.modules.get(name) is not None]
    names = names or [name for name in PACKAGES if find_spec(name.partition(".")[0]) is not None]
    if not names:
        raise ImportError('LSTMMonitorCallback needs Lightning: pip install "lstm-monitor[lightning]"')
    return _class_for(tuple(names))


def _class_for(names: tuple[str, ...]) -> Any:
    if len(names) == 2:
        return _for_both()
    if names[0] == "pytorch_lightning":
        from lstm_monitor.integrations.lightning_callback import of_pytorch_lightning

        return of_pytorch_lightning.LSTMMonitorCallback
    from lstm_monitor.integrations.lightning_callback import of_lightning

    return of_lightning.LSTMMonitorCallback


@cache
def _for_both() -> Any:
    from lstm_monitor.integrations.lightning_callback import of_both

    return of_both.LSTMMonitorCallback
