"""Which of torch's recurrent modules a module is, and whether it computes as that one does."""

from __future__ import annotations

from collections.abc import Callable
from inspect import unwrap
from typing import Any, TypeVar

from torch import nn

from lstm_monitor.core.terms import Kind

Forward = TypeVar("Forward", bound=Callable[..., Any])

SUPPORTED: dict[type[nn.Module], str] = {
    nn.LSTM: "lstm",
    nn.GRU: "gru",
    nn.RNN: "rnn",
    nn.LSTMCell: "lstm",
    nn.GRUCell: "gru",
    nn.RNNCell: "rnn",
}


def base_of(module: nn.Module) -> type[nn.Module] | None:
    """Which of torch's recurrent classes a module is of; None if of none."""
    return next((base for base in SUPPORTED if isinstance(module, base)), None)


def overrides_forward(module: nn.Module) -> bool:
    """Whether the class of a recurrent module has a ``forward`` that is not torch's own."""
    base = base_of(module)
    return base is not None and type(module).forward is not base.forward


def reaches_torch(module: nn.Module) -> bool:
    """Whether a recurrent module's class inherits torch's own forward, or calls ``super().forward`` around it."""
    base = base_of(module)
    own = type(module).__mro__[: type(module).__mro__.index(base)] if base is not None else ()
    return not overrides_forward(module) or all(_passes_on(cls) for cls in own if "forward" in vars(cls))


def passing_on(forward: Forward) -> Forward:
    """Mark a forward that leads to torch's own, though not by ``super()``."""
    vars(forward)["_passes_on"] = True
    return forward


def _passes_on(cls: type) -> bool:
    if getattr(vars(cls)["forward"], "_passes_on", False):
        return True
    codes = (getattr(unwrap(value), "__code__", None) for value in vars(cls).values() if callable(value))
    return any({"super", "forward"} <= set(code.co_names) for code in codes if code is not None)


def weight_names(module: nn.Module) -> list[str]:
    """The names of a recurrent module's weights."""
    if isinstance(module, nn.RNNBase):
        return [name for names in module._all_weights for name in names]
    return ["weight_ih", "weight_hh"] + (["bias_ih", "bias_hh"] if getattr(module, "bias", True) is not False else [])


def kind_of(module: nn.Module) -> Kind:
    """What a recurrent module computes."""
    kinds: dict[str, Kind] = {"lstm": "lstm", "gru": "gru", "tanh": "rnn_tanh", "relu": "rnn_relu"}
    base = base_of(module)
    assert base is not None
    name = SUPPORTED[base]
    return kinds[str(getattr(module, "nonlinearity", "tanh")) if name == "rnn" else name]
