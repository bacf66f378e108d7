"""Adapters for trainers and loggers; each is imported when it is first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lstm_monitor.integrations.lightning_callback import LSTMMonitorCallback as LSTMMonitorCallback
    from lstm_monitor.integrations.tensorboard_sink import TensorBoardSink as TensorBoardSink

__all__ = ["LSTMMonitorCallback", "TensorBoardSink"]


def __getattr__(name: str) -> Any:
    """Import an adapter, and with it the library that it adapts."""
    if name == "LSTMMonitorCallback":
        from lstm_monitor.integrations._lightning_class import callback_class

        return callback_class()
    if name == "TensorBoardSink":
        from lstm_monitor.integrations.tensorboard_sink import TensorBoardSink

        return TensorBoardSink
    raise AttributeError(f"lstm_monitor.integrations has no {name!r}; there are {', '.join(__all__)}")


def __dir__() -> list[str]:
    """The adapters."""
    return list(__all__)
