"""Find a history, and which of its files make up the training."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from lstm_monitor.core.codec import from_plain
from lstm_monitor.core.errors import nearest, require
from lstm_monitor.history.history import History, Moment
from lstm_monitor.history.storage import Folder, absolute
from lstm_monitor.history.tables import INDEX, checked
from lstm_monitor.history.timeline import (
    FORMAT,
    Entry,
    attempts_of,
    is_ours,
    is_part,
    is_weights,
    missing,
    summary,
    timeline,
    weights_name,
)

NAMED = 6
"""How many of several histories an error names."""


def load_history(path: str | os.PathLike[str], attempt: str | None = None) -> History:
    """The history of a training, from the files that a `HistorySink` wrote.

    Args:
        path: the folder of the history, a folder above it, or an fsspec URL of either.
        attempt: the id of an attempt: the training as it was when that one wrote last, without what later ones put in
            its place. `History.attempts` and `History.notes` name them.

    Raises:
        FileNotFoundError: no history there.
        ImportError: pyarrow or fsspec is not installed (extra ``history``).
        ValueError: several histories below `path`; an attempt that is not there.

    Example:
        >>> import lstm_monitor as lm, torch
        >>> sink = lm.HistorySink("memory://example")  # or "runs/a"
        >>> sink.write(lm.characterize(torch.nn.LSTM(3, 8)))
        >>> lm.load_history("memory://example").last["l0"].hidden_size
        8
    """
    require("pyarrow.parquet", "history")
    folder = find(path)
    names = folder.names()
    found = _entries(folder, names)
    entries = [entry for entry in found if isinstance(entry, Entry)]
    runs = attempts_of(entries)
    chosen = runs if attempt is None else runs[: _place(runs, attempt) + 1]
    kept = timeline(chosen)
    notes = [note for note in found if isinstance(note, str)]
    notes += [*_orphans(names, entries), *_gaps(runs), *_replaced(runs, kept)]
    return History(folder, _moments(kept), [summary(run) for run in runs], notes)


def find(path: str | os.PathLike[str]) -> Folder:
    """The folder of the one history in or below `path`."""
    top = Folder(absolute(path))
    if not top.exists():
        raise FileNotFoundError(f"path={os.fspath(path)!r} is no folder; give that of HistorySink(...) or one above it")
    if any(map(is_ours, top.names())):
        return top
    found = sorted((folder for folder, names in top.below() if any(map(is_ours, names))), key=lambda it: it.path)
    if not found:
        raise FileNotFoundError(
            f"path={os.fspath(path)!r} holds no history; HistorySink(path) among the sinks writes one"
        )
    if len(found) > 1:
        several = ", ".join([*(folder.path for folder in found[:NAMED]), *["..."] * (len(found) > NAMED)])
        raise ValueError(f"path={os.fspath(path)!r} holds {len(found)} histories; give one of {several}")
    return found[0]


def _entries(folder: Folder, names: Sequence[str]) -> list[Entry | str | None]:
    """For each file the entry that it is, or what is to be said of it."""
    with ThreadPoolExecutor() as pool:  # elsewhere than on a local disk each file is a wait
        return list(pool.map(lambda name: _entry(folder, name), names))


def _entry(folder: Folder, name: str) -> Entry | str | None:
    if is_part(name):
        return f"{name}: left by a write that was cut off; ignored"
    if is_weights(name):
        return None
    if not name.endswith(".parquet"):
        return f"{name}: no file of a history; ignored"
    try:
        with folder.open(name) as file:
            return _known_entry(name, require("pyarrow.parquet", "history").read_metadata(file).metadata or {})
    except Exception as error:  # whatever a reader makes of arbitrary bytes
        return f"{name}: half-written or damaged; ignored ({_first_line(error)})"


def _known_entry(name: str, metadata: dict[bytes, bytes]) -> Entry | str:
    if INDEX not in metadata:
        return f"{name}: a Parquet file that is no file of a history; ignored"
    index = json.loads(checked(metadata)[INDEX])
    if index["format"] > FORMAT:
        return f"{name}: written by a newer lstm_monitor (format {index['format']}, here {FORMAT}); ignored"
    entry: Entry = from_plain(Entry, index)
    return replace(entry, name=name)


def _place(runs: Sequence[Sequence[Entry]], attempt: str) -> int:
    ids = [run[0].attempt for run in runs]
    if attempt not in ids:
        raise ValueError(f"attempt={attempt!r} is not there. {nearest(attempt, ids)}")
    return ids.index(attempt)


def _moments(entries: Sequence[Entry]) -> list[Moment]:
    """The checks, each with the study at the same step, and studies without a check."""
    studies = {entry.place or entry.name: entry for entry in entries if entry.kind == "study"}
    checks = [entry for entry in entries if entry.kind == "check"]
    moments = [Moment(check, studies.pop(check.place or check.name, None)) for check in checks]
    return moments + [Moment(None, study) for study in studies.values()]


def _orphans(names: Sequence[str], entries: Sequence[Entry]) -> Iterator[str]:
    known = {weights_name(entry.name) for entry in entries if entry.weights}
    there = {name for name in names if is_weights(name)}
    yield from (f"{name}: weights without a check; ignored" for name in sorted(there - known))
    yield from (f"{name}: is missing, its check is there" for name in sorted(known - there))


def _gaps(runs: Sequence[Sequence[Entry]]) -> Iterator[str]:
    for run in runs:
        absent = missing(run)
        if absent:
            numbers = ", ".join(str(number + 1) for number in absent)
            yield f"{summary(run)}: its reports {numbers} are not there: damaged, deleted, or never written"


def _replaced(runs: Sequence[Sequence[Entry]], kept: Sequence[Entry]) -> Iterator[str]:
    """What of each attempt is not shown."""
    shown = {entry.name for entry in kept}
    for run in runs:
        hidden = [entry for entry in run if entry.kind == "check" and entry.name not in shown]
        if hidden:
            steps = ", ".join(str(entry.step) for entry in hidden)
            how = f"load_history(path, attempt={run[0].attempt!r}) shows them"
            yield f"{summary(run)}: another attempt took the place of its checks at steps {steps}; {how}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
