"""Adapters for trainers and loggers; each is imported when it is first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lstm_monitor.core.errors import require

if TYPE_CHECKING:
    from lstm_monitor.integrations.fastai_callback import FastaiLSTMMonitor as FastaiLSTMMonitor
    from lstm_monitor.integrations.huggingface_callback import HuggingFaceLSTMMonitor as HuggingFaceLSTMMonitor
    from lstm_monitor.integrations.ignite_handler import IgniteLSTMMonitor as IgniteLSTMMonitor
    from lstm_monitor.integrations.keras_callback.callback import KerasLSTMMonitor as KerasLSTMMonitor
    from lstm_monitor.integrations.lightning_callback.of_lightning import LSTMMonitorCallback as LSTMMonitorCallback
    from lstm_monitor.integrations.sb3_callback import SB3LSTMMonitor as SB3LSTMMonitor
    from lstm_monitor.integrations.skorch_callback import SkorchLSTMMonitor as SkorchLSTMMonitor
    from lstm_monitor.integrations.tensorboard_sink.sink import TensorBoardSink as TensorBoardSink
    from lstm_monitor.integrations.wandb_sink.sink import WandbSink as WandbSink

_MODULES = {
    "FastaiLSTMMonitor": "fastai_callback",
    "HuggingFaceLSTMMonitor": "huggingface_callback",
    "IgniteLSTMMonitor": "ignite_handler",
    "KerasLSTMMonitor": "keras_callback.callback",
    "LSTMMonitorCallback": "lightning_callback.choice",
    "SB3LSTMMonitor": "sb3_callback",
    "SkorchLSTMMonitor": "skorch_callback",
    "TensorBoardSink": "tensorboard_sink.sink",
    "WandbSink": "wandb_sink.sink",
}
_NEEDED = {  # by adapters that are classes of the library's own: the library, and the extra that installs it
    "FastaiLSTMMonitor": ("fastai", "fastai"),
    "HuggingFaceLSTMMonitor": ("transformers", "huggingface"),
    "IgniteLSTMMonitor": ("ignite", "ignite"),
    "SB3LSTMMonitor": ("stable_baselines3", "sb3"),
    "SkorchLSTMMonitor": ("skorch", "skorch"),
}

__all__ = [
    "FastaiLSTMMonitor",
    "HuggingFaceLSTMMonitor",
    "IgniteLSTMMonitor",
    "KerasLSTMMonitor",
    "LSTMMonitorCallback",
    "SB3LSTMMonitor",
    "SkorchLSTMMonitor",
    "TensorBoardSink",
    "WandbSink",
]


def __getattr__(name: str) -> Any:
    """Import an adapter, and with it the library that it adapts.

    Raises:
        AttributeError: there is no such adapter.
        ImportError: its library is not installed; the message holds the line that installs it.
    """
    if name not in _MODULES:
        raise AttributeError(f"lstm_monitor.integrations has no {name!r}; there are {', '.join(__all__)}")
    if name in _NEEDED:
        require(*_NEEDED[name])
    module = import_module(f"{__name__}.{_MODULES[name]}")
    return module.callback_class() if name == "LSTMMonitorCallback" else getattr(module, name)


def __dir__() -> list[str]:
    """The adapters."""
    return list(__all__)
