"""Reports in TensorBoard: scalars, distributions, pictures, a dashboard and a card that explains the metrics."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from lstm_monitor.core.errors import require
from lstm_monitor.integrations._pictures import Pictures, counted, drawn
from lstm_monitor.integrations.tensorboard_sink.dashboard import dashboard, guide
from lstm_monitor.integrations.tensorboard_sink.event_files import is_gone, let_go, open_writer, put
from lstm_monitor.metrics.distributions import Values
from lstm_monitor.report.ablation.result import Study
from lstm_monitor.report.ablation.tables import study_markdown
from lstm_monitor.report.keys import PREFIX, run_key
from lstm_monitor.report.report import Report

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

BINS = 30


class TensorBoardSink:
    """Writes every report to TensorBoard, with one flush a check.

    Args:
        log_dir: folder of the run, such as ``runs/a``; written with a writer of our own.
        writer: or your own ``SummaryWriter`` (or a function that returns it), which is left open at the end.
        scalars: write scalars; False where another logger writes them to the same run.
        pictures_every: draw pictures at every n-th report and at the last; 0 never. Between the first and the last only
            where the monitor's budget has room for them. None is 1.

    Raises:
        ImportError: tensorboard is not installed.
        ValueError: neither or both of `log_dir` and `writer`, or a negative `pictures_every`.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | None = None,
        *,
        writer: SummaryWriter | Callable[[], Any] | None = None,
        scalars: bool = True,
        pictures_every: int | None = None,
    ) -> None:
        """See the class."""
        require("tensorboard", "tensorboard")
        if (log_dir is None) == (writer is None):
            raise ValueError(f"log_dir={log_dir!r}, writer={writer!r}: give one of them, such as log_dir='runs/a'")
        self.log_dir, self.given, self.scalars = log_dir, writer, scalars
        self.pictures_every = pictures_every
        self._pictures = Pictures(pictures_every)
        self._writer: Any = None
        self._is_introduced = False
        self._last: Report | None = None

    @property
    def directory(self) -> str | None:
        """The folder of the run; a writer that is given as a function is opened to know it."""
        if self.log_dir is not None:
            return os.fspath(self.log_dir)
        folder = getattr(self._reach(), "log_dir", None)
        return None if folder is None else os.fspath(folder)

    @property
    def drawing(self) -> float:
        """Seconds that pictures took so far."""
        return self._pictures.seconds

    def write(self, report: Report) -> None:
        """Write one report at its step; an ablation check in it also as a card of text and, always, its pictures.

        Raises:
            OSError: the disk cannot be written to; or the folder vanished, and the report begins a new file there.
        """
        vanished = self._vanished()
        writer = self._open(report)
        put(writer, _summary(report, self.scalars), report.step)
        if report.layers:
            self._last = report
            self._pictures.offer(report, self._add_pictures)
        if report.study is not None:
            self._show(report.study, report)
        writer.flush()
        if vanished is not None:
            raise vanished

    def close(self) -> None:
        """Draw the last report if it was not drawn, and close our own writer; a given one is left open.

        Raises:
            OSError: as `write`.
        """
        try:
            if self._writer is not None:
                self._finish()
        finally:
            if self.log_dir is not None and self._writer is not None:
                let_go(self._writer)
            vars(self).update(self._fresh())

    def _finish(self) -> None:
        vanished = self._vanished()
        self._pictures.finish(self._add_pictures)
        if self._last is not None and self._pictures.reports > 1:
            self._explain(self._last)
        self._writer.flush()
        if vanished is not None:
            raise vanished

    def _vanished(self) -> OSError | None:
        """The error to raise if the file of the writer is gone; a new one is begun then."""
        if self._writer is None or not is_gone(self._writer):
            return None
        let_go(self._writer)
        self._is_introduced = False
        folder = os.path.normpath(self._writer.log_dir)
        return FileNotFoundError(f"{folder} vanished with all that was written there; a new file goes on in its place")

    def _fresh(self) -> dict[str, Any]:
        return {"_writer": None, "_is_introduced": False, "_last": None, "_pictures": Pictures(self.pictures_every)}

    def __getstate__(self) -> dict[str, Any]:
        """The options: a copy opens a writer of its own."""
        return vars(self) | self._fresh()

    def __deepcopy__(self, memo: dict[int, Any]) -> TensorBoardSink:
        """A sink with the same options; a given writer is shared."""
        copy = type(self).__new__(type(self))
        vars(copy).update(self.__getstate__())
        return copy

    def _open(self, report: Report) -> Any:
        writer = self._reach()
        if not self._is_introduced:
            self._introduce(report)
            self._is_introduced = True
        return writer

    def _reach(self) -> Any:
        if self._writer is None:
            if self.log_dir is not None:
                self._writer = open_writer(str(self.log_dir))
            else:
                self._writer = self.given() if callable(self.given) else self.given
        return self._writer

    def _introduce(self, report: Report) -> None:
        """The card, and the dashboard in a sub-run: a second layout in one run would replace the user's."""
        from torch.utils.tensorboard.summary import custom_scalars

        self._explain(report)
        with open_writer(os.path.join(str(self._writer.log_dir), PREFIX)) as layout:
            put(layout, custom_scalars(dashboard(report)))

    def _explain(self, report: Report) -> None:
        self._add_text(run_key("guide"), guide(report), report)

    def _show(self, study: Study, report: Report) -> None:
        self._add_text(run_key("ablation"), study_markdown(study), report)
        if self.pictures_every != 0 and not report.layers:
            self._add_pictures(report)

    def _add_text(self, name: str, words: str, report: Report) -> None:
        from torch.utils.tensorboard.summary import text

        put(self._writer, text(name, words), report.step)

    def _add_pictures(self, report: Report) -> None:
        from torch.utils.tensorboard.summary import image

        for name, pixels in drawn(report).items():
            put(self._writer, image(name, pixels, dataformats="HWC"), report.step)


def _summary(report: Report, with_scalars: bool) -> Any:
    """All scalars and histograms of a report as one event: a hundred single ones take more than twice as long."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from torch.utils.tensorboard.summary import scalar

    parts = [scalar(name, value) for name, value in report.scalars().items()] if with_scalars else []
    parts += [_histogram(name, values) for name, values in report.histograms().items()]
    whole = Summary()
    for part in parts:
        whole.value.extend(part.value)
    return whole


def _histogram(name: str, values: Values) -> Any:
    from torch.utils.tensorboard.summary import histogram_raw

    counts, edges = counted(values, BINS)
    return histogram_raw(
        name,
        min=float(values[0]),
        max=float(values[-1]),
        num=len(values),
        sum=float(values.sum()),
        sum_squares=float(np.square(values).sum()),
        bucket_limits=edges[1:].tolist(),
        bucket_counts=counts.tolist(),
    )
