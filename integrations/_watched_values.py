"""The values that other callbacks monitor: every scalar as last measured, finite from the start of the training on."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from lstm_monitor.core.errors import nearest
from lstm_monitor.core.guard import tell
from lstm_monitor.monitor.monitor import LSTMMonitor
from lstm_monitor.report.keys import PREFIX, documented_keys
from lstm_monitor.report.report import Report

FAR, STEP = 1e30, 1e-3


class Values:
    """What is given to the Trainer: EarlyStopping ends at NaN or a missing key."""

    def __init__(self, known: Mapping[str, float] | None = None) -> None:
        """`known`: what was measured last, by key."""
        self.known: dict[str, float] = dict(known or {})
        self._of: Report | None = None
        self._waited = 0
        self._told = ""

    def now(self, monitor: LSTMMonitor, watched: Mapping[str, str]) -> dict[str, float]:
        """Every value as last measured, and stand-ins, which no checkpoint keeps, for watched keys without one."""
        report, idle = monitor.report, monitor.guard.idle
        if watched and idle and self._told != "unmeasured":
            self._told = "unmeasured"
            tell_unmeasured(watched)
        elif report is not None and not self._told:
            self._told = "unknown"
            tell_unknown(watched, report)
        if report is not None and report is not self._of:
            self._of, self.known = report, self.known | report.scalars()
        self._waited += 1
        lacking = {key: mode for key, mode in watched.items() if idle or key not in self.known}
        seen = self.known.keys()
        return self.known | {key: stand_in(mode, self._waited, seen=key in seen) for key, mode in lacking.items()}


def watched_by_trainer(trainer: Any) -> dict[str, str]:
    """Our keys that another callback or a learning rate scheduler of the Trainer monitors, with its mode."""
    watchers = [(callback, callback) for callback in trainer.callbacks]
    watchers += [(config, config.scheduler) for config in trainer.lr_scheduler_configs]
    watched = {getattr(watcher, "monitor", None): getattr(owner, "mode", "min") for watcher, owner in watchers}
    return {key: mode for key, mode in watched.items() if isinstance(key, str) and key.startswith(f"{PREFIX}/")}


def stand_in(mode: str, count: int, *, seen: bool) -> float:
    """What a watcher sees of a key that is not measured: it must neither raise nor end the training.

    Before the first measured value the worst, so that this one is an improvement; after the last the best. Each is
    better than the one before, so that no patience runs out.
    """
    worse = -1.0 if mode == "max" else 1.0
    return -worse * FAR * (1 + STEP * count) if seen else worse * FAR * (1 - STEP * count)


def tell_unmeasured(keys: Iterable[str]) -> None:
    """One warning for the keys that others monitor while nothing is measured."""
    names = ", ".join(map(repr, keys))
    tell(f"{names} is monitored, but lstm_monitor rests or is off: stand-ins that improve keep the training going")


def tell_unknown(keys: Iterable[str], report: Report) -> None:
    """One warning for each monitored key that is never logged."""
    layers = [str(layer.key) for layer in report.layers]
    scalars = [key for key, kind, _ in documented_keys() if kind == "scalar"]
    known = {key.replace("<layer>", layer) for key in scalars for layer in layers}
    for key in set(keys) - known:
        tell(f"monitor={key!r} is no key of lstm_monitor and never measured. {nearest(key, known)}")


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


def watched_by_callbacks(callbacks: Iterable[Any]) -> dict[str, str]:
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
