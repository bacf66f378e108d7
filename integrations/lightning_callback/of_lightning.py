"""The callback for ``lightning``."""

from lightning.pytorch.callbacks import Callback

from lstm_monitor.integrations.lightning_callback.hooks import LightningHooks


class LSTMMonitorCallback(LightningHooks, Callback):  # noqa: D101  # the next line is its docstring
    __doc__ = LightningHooks.__doc__
