"""What goes into the ``logs`` of a Keras training: what its other callbacks monitor, and what was asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from lstm_monitor.report import PREFIX


def callbacks_beside(callback: Any) -> list[Any] | None:
    """All callbacks of the training that is calling `callback` now; None where it is not Keras's list that calls it.

    Keras tells a callback nothing of the others, but its list of them is among the callers.
    """
    frame = sys._getframe(1)
    while frame is not None:
        others = getattr(frame.f_locals.get("self"), "callbacks", None)
        if isinstance(others, list) and any(other is callback for other in others):
            return others
        frame = frame.f_back  # type: ignore[assignment]  # None at the outermost
    return None


def watched_keys(callbacks: Iterable[Any]) -> dict[str, str]:
    """Our keys that callbacks monitor, each with whether "min" or "max" is better for it."""
    watched = {getattr(callback, "monitor", None): _mode(callback) for callback in callbacks}
    return {key: mode for key, mode in watched.items() if isinstance(key, str) and key.startswith(f"{PREFIX}/")}


def _mode(callback: Any) -> str:
    better = getattr(callback, "monitor_op", None)
    return "max" if "max" in (getattr(callback, "mode", ""),) or "greater" in getattr(better, "__name__", "") else "min"


def chosen(values: Mapping[str, float], globs: Sequence[str]) -> dict[str, float]:
    """The values whose keys one of the globs matches, with or without the prefix ``lstm_monitor/``."""
    names = [glob if glob.startswith(f"{PREFIX}/") or glob == "*" else f"{PREFIX}/{glob}" for glob in globs]
    return {key: value for key, value in values.items() if any(fnmatchcase(key, name) for name in names)}
