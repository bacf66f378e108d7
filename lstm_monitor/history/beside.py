"""The history that is kept without being asked for, beside a logger that has a folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib.util import find_spec

from lstm_monitor.errors import require
from lstm_monitor.history.files import Folder
from lstm_monitor.history.names import is_ours, is_weights
from lstm_monitor.history.sink import HistorySink
from lstm_monitor.sinks import Sink

FOLDER = "lstm_monitor_history"
_NEEDED = ("pyarrow", "fsspec", "safetensors")


def history_beside(sinks: Sequence[Sink], history: bool | str | None) -> HistorySink | None:
    """The history to keep besides `sinks`: in the folder `history`, or beside the first sink that has one.

    None for False, where one of the sinks is a history already, and by default (None) where there is no folder or the
    extra is not installed.

    Raises:
        ImportError: a history is asked for, and its extra is not installed.
        ValueError: True without any folder.
    """
    if history is False or any(isinstance(sink, HistorySink) for sink in sinks):
        return None
    if isinstance(history, str):
        return HistorySink(history)
    if history is None and not all(find_spec(name) for name in _NEEDED):
        return None
    folder = next((folder for folder in map(_folder, sinks) if folder is not None), None)
    if folder is None and history:
        raise ValueError("history=True finds no sink or logger with a folder; give the folder, history='runs/a'")
    return None if folder is None else HistorySink(os.path.join(folder, FOLDER))


def _folder(sink: Sink) -> str | None:
    """Where the sink writes; None where it does not know, or fails to tell: it will say so when it writes."""
    try:
        folder: str | None = getattr(sink, "directory", None)
    except Exception:
        return None
    return folder


def bring_along(earlier: str, now: str) -> None:
    """Copy the files of an earlier history into a new, empty one: a resumed run often gets another folder."""
    old, new = Folder(earlier), Folder(now)
    if earlier == now or not old.exists() or (new.exists() and any(map(is_ours, new.names()))):
        return
    for name in _weights_first(old.names()):
        new.write(name, old.read(name))


def _weights_first(names: Iterable[str]) -> list[str]:
    """A check that is there has its weights."""
    given = list(names)
    return [*filter(is_weights, given), *filter(is_ours, given)]


def check_history(history: bool | str | os.PathLike[str] | None) -> bool | str | None:
    """`history` itself, a path as text.

    Raises:
        ImportError: one is asked for, and its extra is not installed.
        TypeError: it is something else.
    """
    if history:
        for name in _NEEDED:
            require(name, "history")
    if isinstance(history, os.PathLike):
        return os.fspath(history)
    if history is None or isinstance(history, bool | str):
        return history
    raise TypeError(f"history={history!r}: give a folder, True, False, or None for one beside a logger's folder")
