"""A sink's setup: how it is made in a folder, and how what it wrote is read back by the library that it writes for."""

from __future__ import annotations

import abc
from pathlib import Path
from typing import Any, ClassVar

Written = list[tuple[int | None, dict[str, float]]]
"""Step and scalars of each check, in the order written."""


class SinkSetup(abc.ABC):
    """One sink."""

    name: ClassVar[str]
    sink: ClassVar[str]
    """Its name in ``lstm_monitor`` or ``lstm_monitor.integrations``."""
    survives_copies: ClassVar[bool] = True
    """Whether a copy of the sink writes to where the original would have."""
    exact: ClassVar[bool] = True
    """Whether values come back to the last bit (TensorBoard keeps single precision)."""

    @abc.abstractmethod
    def make(self, folder: Path) -> Any:
        """A new sink."""

    @abc.abstractmethod
    def read(self, folder: Path) -> Written:
        """What lies there after the training."""

    def end(self) -> None:  # noqa: B027  # most have nothing to do
        """Close what the user would have closed."""
