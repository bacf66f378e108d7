"""A failure of ours never ends a training: it becomes one warning, and the monitor rests."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from lstm_monitor.errors import choose

OnError = Literal["warn", "raise"]
LOG = logging.getLogger("lstm_monitor")


class MonitorWarning(UserWarning):
    """The monitor met an error and rests; the training goes on."""


class Guard:
    """Remembers whether the monitor is switched off or rests after an error."""

    def __init__(self, on_error: OnError = "warn") -> None:
        """With "warn" errors become one warning; with "raise" they are raised.

        Raises:
            ValueError: another value of `on_error`.
        """
        choose("on_error", on_error, ("warn", "raise"))
        self.on_error = on_error
        self.resting = False
        self._forgiven: set[int] = set()

    @property
    def idle(self) -> bool:
        """Whether nothing is to be done: resting after an error, or ``LSTM_MONITOR=off`` in the environment."""
        return self.resting or switched_off()

    @contextmanager
    def protect(self, doing: str) -> Iterator[None]:
        """Errors inside end in one warning, after which the monitor rests."""
        try:
            yield
        except Exception as error:
            if self.on_error == "raise":
                raise
            if not self.resting:
                self.resting = True
                tell(f"lstm_monitor rests from now on; the training goes on. {doing} failed: {_words(error)}")

    @contextmanager
    def forgive(self, part: object, name: str | None = None) -> Iterator[None]:
        """Errors inside end in one warning for this part, which is tried again; the monitor goes on."""
        try:
            yield
        except Exception as error:
            if self.on_error == "raise":
                raise
            if id(part) not in self._forgiven:
                self._forgiven.add(id(part))
                tell(f"{name or type(part).__name__} failed and is tried again at each check; the training goes on. {_words(error)}")


def switched_off() -> bool:
    """Whether ``LSTM_MONITOR`` in the environment is off, 0, no or false."""
    return os.environ.get("LSTM_MONITOR", "").strip().lower() in {"off", "0", "no", "false"}


def tell(message: str) -> None:
    """One warning; to the log where the user turned warnings into errors, which would end the training."""
    try:
        warnings.warn(message, MonitorWarning, stacklevel=_frames_of_ours() + 1)
    except MonitorWarning:
        LOG.error(message)


def _frames_of_ours() -> int:
    """How many frames up the caller of this package is, so that a warning points at it."""
    count, frame = 0, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals["__name__"].split(".")[0] in ("lstm_monitor", "contextlib"):
        count, frame = count + 1, frame.f_back
    return count


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
