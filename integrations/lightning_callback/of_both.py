"""The callback where both Lightning packages are loaded: it belongs to both."""

from lightning.pytorch.callbacks import Callback as LightningBase
from pytorch_lightning.callbacks import Callback as PyTorchLightningBase

from lstm_monitor.integrations.lightning_callback.hooks import LightningHooks


class LSTMMonitorCallback(LightningHooks, LightningBase, PyTorchLightningBase):  # type: ignore[misc]  # noqa: D101  # two classes of one name; the next line is its docstring
    __doc__ = LightningHooks.__doc__
