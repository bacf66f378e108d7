"""Reports in Weights & Biases: scalars on their own step axis, histograms, tables, pictures, charts and alerts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lstm_monitor.core.errors import require
from lstm_monitor.integrations._pictures import Pictures, counted, drawn
from lstm_monitor.report.ablation.verdict import trust_sentence
from lstm_monitor.report.keys import run_key
from lstm_monitor.report.report import Report

if TYPE_CHECKING:
    import wandb

    from lstm_monitor.integrations.wandb_sink.run import Shared

BINS = 64


class WandbSink:
    """Writes every report into a W&B run of yours, which is neither started nor finished here.

    Every metric has the training's step as its axis, whatever you log yourself and with which ``step=``. A check joins
    the row of the history that is open; if that holds a check already it waits for the next, and at most until the run
    finishes, since ending a row for you could lose one of yours.

    Args:
        run: what ``wandb.init()`` returns, or a function that returns it, called at each report.
        scalars: write scalars; False where something else writes them to the same run.
        pictures_every: draw pictures at every n-th report and at the last; 0 never. Between the first and the last only
            where the monitor's budget has room for them. None is 1.
        own_rows: write each check at once, ending the open row. Only where nothing is logged with ``step=``.

    Raises:
        ImportError: wandb is not installed.
        TypeError: `run` is no run.
        ValueError: a negative `pictures_every`.
    """

    def __init__(
        self,
        run: wandb.Run | Callable[[], Any],
        *,
        scalars: bool = True,
        pictures_every: int | None = None,
        own_rows: bool = False,
    ) -> None:
        """See the class."""
        require("wandb", "wandb")
        from lstm_monitor.integrations.wandb_sink.run import checked

        self.given = run if callable(run) else checked(run)
        self.scalars, self.pictures_every, self.own_rows = scalars, pictures_every, own_rows
        self._pictures = Pictures(pictures_every)

    @property
    def directory(self) -> str | None:
        """A folder beside the run's own, the same whenever the run is resumed; W&B does not upload it."""
        from lstm_monitor.integrations.wandb_sink.run import is_run

        run = self._now()
        return str(Path(run.dir).parents[1] / f"lstm_monitor-{run.id}") if is_run(run) and not run.disabled else None

    @property
    def drawing(self) -> float:
        """Seconds that pictures took so far."""
        return self._pictures.seconds

    def write(self, report: Report) -> None:
        """Write one report at its step; an ablation check in it as tables, charts and a summary.

        Raises:
            RuntimeError: the run is finished.
            TypeError: there is no run.
            OSError: its folder vanished, or the disk cannot be written to.
        """
        from lstm_monitor.integrations.wandb_sink.run import check_folder

        run = self._run()
        if run.disabled:
            return
        self._write(report, run)
        check_folder(run)

    def _write(self, report: Report, run: Any) -> None:
        to = self._shared()
        to.rows.add(_axis(report) | self._values(report, to), at_once=self.own_rows)
        if report.study is not None:
            run.summary[run_key("ablation")] = " ".join(map(trust_sentence, report.studied))
        if report.layers:
            to.alert(report)
            self._pictures.offer(replace(report, study=None), self._add_pictures)

    def close(self) -> None:
        """Draw the last report if it was not drawn; the run is left open."""
        pictures, self._pictures = self._pictures, Pictures(self.pictures_every)
        if pictures.reports and self._is_open():
            try:
                pictures.finish(self._add_pictures)
            finally:
                to = self._shared()
                to.rows.release(at_once=self.own_rows or not to.has_end)

    def __getstate__(self) -> dict[str, Any]:
        """The options: a run stays in its process, a function that returns one goes along."""
        given = self.given if callable(self.given) else None
        return vars(self) | {"given": given, "_pictures": Pictures(self.pictures_every)}

    def __deepcopy__(self, memo: dict[int, Any]) -> WandbSink:
        """A sink with the same options and the same run."""
        copy = type(self).__new__(type(self))
        vars(copy).update(self.__getstate__() | {"given": self.given})
        return copy

    def _run(self) -> Any:
        from lstm_monitor.integrations.wandb_sink.run import checked

        if self.given is None:
            raise RuntimeError(
                "this WandbSink was pickled, and a run stays in its process: set sink.given to the run of this one, or "
                "give WandbSink a function of a module that returns it"
            )
        return checked(self._now())

    def _now(self) -> Any:
        return self.given() if callable(self.given) else self.given

    def _is_open(self) -> bool:
        from lstm_monitor.integrations.wandb_sink.run import is_open

        return is_open(self._now())

    def _shared(self) -> Shared:
        from lstm_monitor.integrations.wandb_sink.run import shared

        return shared(self._run())

    def _values(self, report: Report, to: Shared) -> dict[str, Any]:
        import wandb

        from lstm_monitor.integrations.wandb_sink.tables import cell_rows, study_values

        values: dict[str, Any] = report.scalars() if self.scalars else {}
        for name, cells in report.histograms().items():
            values[name] = wandb.Histogram(np_histogram=counted(cells, BINS))
        if report.layers:
            values[run_key("cells")] = partial(to.cells.grown, cell_rows(report))
        return values | ({} if report.study is None else study_values(report.study))

    def _add_pictures(self, report: Report) -> None:
        import wandb

        images = {name: wandb.Image(pixels) for name, pixels in drawn(report).items()}
        if images:
            self._shared().rows.add(_axis(report) | images, at_once=self.own_rows)


def _axis(report: Report) -> dict[str, Any]:
    return {run_key("step"): report.step or 0}
