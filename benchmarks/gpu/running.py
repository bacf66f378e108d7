"""Run a section in a process of its own: a crash, a hang or a CUDA error that stays in one spoils no other.

CUDA keeps some errors until the process ends, so after one of them the rest of a section's parts run in a new process.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

from gpu.page import Page
from gpu.parts import POISONED

FAILURES, NOTHING_LEFT = 1, 5
"""The status of pytest after failures, and where no test is left to be run."""
SILENCE = 90.0
"""Seconds without a line after which a process is taken to hang: Triton and torch compile for less."""
LAST_SECONDS = 3.0
"""For a process to end after its last line."""
PROCESSES = 4
"""So many a section at most."""
TAIL = 6
"""Lines of what a process printed that are shown when it fails; all are in the log beside the page."""
MOST = 300
"""Letters of such a line."""


@dataclass(frozen=True)
class Section:
    """A title, what the interpreter is given to run it, the seconds that it may take, and more of an environment."""

    title: str
    command: tuple[str, ...]
    seconds: float
    environment: Mapping[str, str]


@dataclass
class _Seen:
    """What came from the processes of a section: the parts that were begun, and that of which no verdict came yet.

    ``failed``: how many failures the page had before.
    """

    failed: int
    begun: list[str] = field(default_factory=list)
    open: str | None = None


def run(section: Section, page: Page, until: float) -> None:
    """Run a section, at most `until` a time of `time.monotonic`; what fails is on the page and in its tally."""
    page.heading(section.title)
    end = min(until, time.monotonic() + section.seconds)
    if end - time.monotonic() < 1:
        page.fail(section.title, "not run: no time was left")
        return
    seen = _Seen(len(page.tally.failed))
    for _ in range(PROCESSES):
        status, said = _process(section, page, seen, end)
        page.log(section.title, said)
        _tell_end(section, page, seen, status, "\n".join(said[-TAIL:]) or "no words")
        if seen.open is None and status != POISONED:
            return
        seen.open = None
        if not seen.begun or time.monotonic() > end:
            return
    page.fail(section.title, "given up: too many of its processes died")


def _tell_end(section: Section, page: Page, seen: _Seen, status: int | str, said: str) -> None:
    """What the page has to know of how a process ended, if it has not told so itself."""
    has_told = status in (FAILURES, NOTHING_LEFT) and len(page.tally.failed) > seen.failed
    if seen.open is not None or not (has_told or status in (0, POISONED)):
        page.fail(seen.open or section.title, f"{_words(status)}: {said}")


def _words(status: int | str) -> str:
    if isinstance(status, str):
        return status
    return f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def _process(section: Section, page: Page, seen: _Seen, end: float) -> tuple[int | str, list[str]]:
    """One process of a section: its exit status or why it was ended, and the lines that it printed besides."""
    with tempfile.TemporaryDirectory() as folder:
        done, errors = Path(folder, "done"), Path(folder, "errors")
        done.write_text("\n".join(seen.begun), encoding="utf-8")
        environment = {**os.environ, **section.environment, "LSTM_MONITOR_DONE": str(done)}
        with errors.open("w", encoding="utf-8") as file:
            command = [sys.executable, *section.command]
            process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=file, text=True, start_new_session=True
            )
            lines: queue.Queue[str | None] = queue.Queue()
            reader = Thread(target=_read, args=(process, lines), daemon=True)
            reader.start()
            try:
                cut, printed = _follow(lines, page, seen, end)
            finally:
                _end(process, reader)
        said = [*printed, *errors.read_text(encoding="utf-8", errors="replace").splitlines()]
    return cut or process.returncode, [line[:MOST] for line in said if line.strip()]


def _follow(lines: queue.Queue[str | None], page: Page, seen: _Seen, end: float) -> tuple[str | None, list[str]]:
    """Write what a process tells, until it ends; why it has to be ended, and the other lines that it printed."""
    printed: list[str] = []
    while True:
        left = end - time.monotonic()
        try:
            line = lines.get(timeout=max(0.0, min(left, SILENCE)))
        except queue.Empty:
            return "cut off: its time was over" if left <= SILENCE else f"cut off: silent for {SILENCE:.0f} s", printed
        if line is None:
            return None, printed
        told = page.take(line)
        if told is None:
            printed += [line.rstrip()] if line.strip(" .\n") else []
        elif "begun" in told:
            seen.begun.append(told["begun"])
            seen.open = told["begun"]
        elif "verdict" in told:
            seen.open = None


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.put(line)
    lines.put(None)


def _end(process: subprocess.Popen[str], reader: Thread) -> None:
    """End a process with all that it started; one that has closed its output may still come to its own end."""
    reader.join(timeout=0.2)
    if not reader.is_alive():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=LAST_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    reader.join()
