"""The terms that every record speaks in: kinds of layers, gates, modes, names of layers, one line for each record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

from torch import Tensor, nn

Kind = Literal["lstm", "gru", "rnn_tanh", "rnn_relu", "custom"]
Mode = Literal["coupled", "alone"]
AblationMode = Literal["zero", "mean"]
Better = Literal["lower", "higher"]

GATES: Mapping[str, tuple[str, ...]] = {
    "lstm": ("input", "forget", "candidate", "output"),
    "gru": ("reset", "update", "candidate"),
    "rnn_tanh": ("candidate",),
    "rnn_relu": ("candidate",),
}
"""The row blocks of torch's weight matrices, in torch's order."""


@dataclass(frozen=True)
class LayerKey:
    """The name of one direction of one recurrent layer, as in torch's parameter names.

    ``rnn.l0``, ``rnn.l1_reverse``; ``l0`` where the model itself is the layer; a cell module is its path.
    """

    path: str
    index: int | None = 0
    reverse: bool = False

    def __str__(self) -> str:
        """The name that people type and that stands in logged keys."""
        if self.index is None:
            return self.path or "cell"
        suffix = f"l{self.index}{'_reverse' if self.reverse else ''}"
        return f"{self.path}.{suffix}" if self.path else suffix


@dataclass(frozen=True, eq=False, repr=False)
class OneLine:
    """A record whose ``repr`` is one line: tensors by their shapes, parts by their type or number."""

    def __repr__(self) -> str:
        shown = ((f.name, _short(getattr(self, f.name))) for f in fields(self))
        return f"{type(self).__name__}({', '.join(f'{name}={words}' for name, words in shown if words)})"


def _short(value: Any) -> str:
    """A few words for the value of a field; none for what is absent or empty."""
    if isinstance(value, Tensor):
        return str(tuple(value.shape))
    if isinstance(value, LayerKey):
        return str(value)
    if is_dataclass(value):
        return f"<{type(value).__name__}>"
    if isinstance(value, tuple | Mapping):
        return f"<{len(value)}>" if value else ""
    if isinstance(value, nn.Module) or callable(value):
        return f"<{getattr(value, '__name__', type(value).__name__)}>"
    return "" if value is None else repr(value)
