"""A failure of ours never ends a training: it becomes one warning, and the monitor rests."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from lstm_monitor.core.errors import choose

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
        self.resting, self.reason = False, ""
        self.quiet = False  # where another process's monitor says it
        self._forgiven: set[int | str] = set()

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
                self.resting, self.reason = True, f"{doing} failed: {_words(error)}"
                if not (self.quiet or switched_off()):
                    tell(f"lstm_monitor rests from now on; the training goes on. {self.reason}")

    def forgive(self, failed: Sequence[tuple[object, Exception]], kept: str | None = None) -> None:
        """One warning for those parts that fail for the first time; all are tried again, and the monitor goes on.

        With "raise" the first error is raised. `kept`: the history in which nothing is missing. A part is a text, or an
        object that is called by its ``name`` or its class.
        """
        if failed and self.on_error == "raise":
            raise failed[0][1]
        new = [f"{_name(part)} failed: {_words(error)}" for part, error in failed if _id(part) not in self._forgiven]
        self._forgiven |= {_id(part) for part, _ in failed}
        if new:
            where = "" if kept is None else f' Every check is kept in the history: lm.load_history("{kept}")'
            tell(f"{'; '.join(new)}. The training goes on, and later checks try again.{where}")


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


def _name(part: object) -> str:
    return part if isinstance(part, str) else str(getattr(part, "name", type(part).__name__))


def _id(part: object) -> int | str:
    return part if isinstance(part, str) else id(part)
