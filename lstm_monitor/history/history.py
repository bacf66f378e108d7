"""A history: the checks of one training, read when they are asked for, also as tables and arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from lstm_monitor.core.errors import nearest, require
from lstm_monitor.core.records import Snapshot
from lstm_monitor.history.snapshot_file import bytes_to_snapshots
from lstm_monitor.history.storage import Folder
from lstm_monitor.history.tables import parquet_file, to_report
from lstm_monitor.history.timeline import Attempt, Entry, weights_name
from lstm_monitor.metrics.catalog import CATALOG
from lstm_monitor.report.ablation.result import Study
from lstm_monitor.report.report import Report

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Moment:
    """A check and the ablation study made at the same step; one of them may be missing."""

    check: Entry | None
    study: Entry | None

    @property
    def entry(self) -> Entry:
        """The check, or the study without one."""
        found = self.check or self.study
        assert found is not None
        return found


class History:
    """The checks of one training as it went on through all interruptions, in order, one a step.

    Made by `load_history`. Values are read from the files when they are asked for. A file whose values turn out to be
    damaged then is left out and named in `notes`.

    Attributes:
        path: the folder.
        attempts: every run of checks in the folder, the one that wrote last comes last.
        steps: the training step of each check (None: not known).
        epochs: the epochs done at each.
        layers: the names of all layers, in order.
    """

    def __init__(
        self, folder: Folder, moments: Sequence[Moment], attempts: Sequence[Attempt], notes: Sequence[str]
    ) -> None:
        """What `load_history` found."""
        self.path, self.attempts = folder.path, tuple(attempts)
        self.steps = tuple(moment.entry.step for moment in moments)
        self.epochs = tuple(moment.entry.epoch for moment in moments)
        self.layers = tuple(dict.fromkeys(name for moment in moments for name in moment.entry.layers))
        self._folder, self._moments, self._notes = folder, tuple(moments), list(notes)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know: files that were ignored, and checks that others took the place of."""
        return tuple(self._notes)

    def __len__(self) -> int:
        """How many checks there are."""
        return len(self._moments)

    def report(self, step: int | None = None, epoch: int | None = None) -> Report:
        """The report of the check at a step, as it was written; the last by default.

        An ablation study that was made at this step is in it. `epoch` tells checks at the same step apart.

        Raises:
            KeyError: no check at this step.
            ValueError: the file is damaged.
        """
        return self._read(self._at(step, epoch))

    @property
    def last(self) -> Report:
        """The last report."""
        return self.report()

    def reports(self) -> Iterator[Report]:
        """Every report in order, each read when it is its turn."""
        return (report for _, report in self._each(self._read))

    @property
    def study(self) -> Study | None:
        """The last ablation study; None without any."""
        made = [moment.study for moment in self._moments if moment.study is not None]
        return self._open(made[-1], to_report).study if made else None

    def to_pandas(self) -> pd.DataFrame:
        """A row a step, layer and cell; columns as in `Report.to_pandas`.

        Raises:
            ImportError: pandas is not installed (extra ``history``).
        """
        return all_cells([frame for _, frame in self._frames()])

    def scalars(self) -> pd.DataFrame:
        """Every logged scalar: a row a check by its step, a column a key; NaN where it was not logged.

        Raises:
            ImportError: pandas is not installed (extra ``history``).
        """
        return scalar_frame(list(self.reports()))

    def to_xarray(self, layer: str | None = None) -> xr.Dataset:
        """Arrays ``(step, layer, cell)`` of rank, score and every metric; of one layer ``(step, cell)``.

        NaN where a metric is undefined, and beyond the cells of a smaller layer. netCDF-4 and zarr want names without
        slashes: ``dataset.rename({name: name.replace("/", ".") for name in dataset}).to_netcdf("run.nc")``.

        Raises:
            ImportError: xarray is not installed (extra ``history``).
            KeyError: no such layer.
        """
        pairs = self._frames()
        moments = [(entry.step, entry.epoch) for entry, _ in pairs]
        whole = dataset([frame for _, frame in pairs], moments, self.layers if layer is None else [self._known(layer)])
        return whole if layer is None else whole.sel(layer=layer, drop=True)

    def snapshot(self, step: int | None = None, layer: str | None = None) -> tuple[Snapshot, ...]:
        """The layers as they were at the check at a step (by default the last), as `characterize` takes them.

        Raises:
            KeyError: no check at this step, or no such layer.
            ValueError: weights were not kept, or the file is damaged.
        """
        entry = self._at(step, None).entry
        if not entry.weights:
            raise ValueError(f"no weights were kept at step {entry.step}; HistorySink(path, save_weights=True) does it")
        snaps = self._open(replace(entry, name=weights_name(entry.name)), bytes_to_snapshots)
        chosen = snaps if layer is None else tuple(snap for snap in snaps if str(snap.key) == self._known(layer))
        if not chosen:
            raise ValueError(
                f"layer={layer!r} was not kept at step {entry.step}: it is a registered cell, which is code"
            )
        return chosen

    def __repr__(self) -> str:
        """A few lines for people: how many checks, over which steps, of which layers, and the notes."""
        steps = f", steps {self.steps[0]} to {self.steps[-1]}" if self._moments else ""
        study = ", with an ablation study" if any(moment.study for moment in self._moments) else ""
        lead = f"history in {self.path}: {len(self)} checks{steps}{study}; layers: {', '.join(self.layers) or 'none'}"
        return "\n".join([lead, *(f"  note: {note}" for note in self._notes)])

    def _known(self, layer: str) -> str:
        if layer not in self.layers:
            raise KeyError(f"no layer {layer!r}. {nearest(layer, self.layers)}")
        return layer

    def _at(self, step: int | None, epoch: int | None) -> Moment:
        pairs = zip(self._moments, self.steps, self.epochs, strict=True)
        found = [m for m, s, e in pairs if step in (None, s) and epoch in (None, e)]
        if not found:
            where = f"step={step!r}" if epoch is None else f"step={step!r}, epoch={epoch!r}"
            steps = ", ".join(map(str, self.steps)) or "none"
            raise KeyError(f"no check at {where} in {self.path}. Steps with a check: {steps}")
        return found[-1]

    def _read(self, moment: Moment) -> Report:
        report = self._open(moment.entry, to_report)
        if moment.check is None or moment.study is None:
            return report
        return replace(report, study=self._open(moment.study, to_report).study)

    def _frames(self) -> list[tuple[Entry, pd.DataFrame]]:
        """The tables of the checks."""
        return [(moment.entry, frame) for moment, frame in self._each(self._frame) if frame is not None]

    def _frame(self, moment: Moment) -> pd.DataFrame | None:
        check = moment.check
        if check is None:
            return None
        return self._open(check, lambda data: cell_frame(parquet_file(BytesIO(data)), check.step, check.epoch))

    def _open(self, entry: Entry, read: Callable[[bytes], T]) -> T:
        try:
            return read(self._folder.read(entry.name))
        except ImportError:
            raise
        except Exception as error:
            raise ValueError(f"{entry.name} is damaged or gone ({error}); {self.path} is read without it") from error

    def _each(self, read: Callable[[Moment], T]) -> Iterator[tuple[Moment, T]]:
        """What is read of each moment; a damaged file is left out and noted."""
        for moment in self._moments:
            try:
                yield moment, read(moment)
            except ValueError as error:
                if str(error) not in self._notes:
                    self._notes.append(str(error))


_OF_A_ROW = ("step", "epoch", "layer", "cell")
_CHECK = "check"


def cell_frame(file: Any, step: int | None, epoch: int | None) -> pd.DataFrame:
    """The table of one open file: a row a cell, of the columns with one value a cell."""
    schema = file.schema_arrow
    single = [name for name in schema.names if schema.field(name).type.num_fields == 0 and name != "settled"]
    frame: pd.DataFrame = file.read(columns=single, use_threads=False).to_pandas()
    frame.insert(0, "step", step)
    frame.insert(1, "epoch", epoch)
    return frame


def all_cells(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The tables of all checks, one below the other."""
    pd = require("pandas", "history")
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*_OF_A_ROW, "rank", "score"])


def scalar_frame(reports: Sequence[Report]) -> pd.DataFrame:
    """Every logged scalar: a row a check by its step, a column a key; NaN where it was not logged."""
    pd = require("pandas", "history")
    return pd.DataFrame(
        [report.scalars() for report in reports], index=pd.Index([r.step for r in reports], name="step")
    )


def dataset(frames: Sequence[pd.DataFrame], moments: Sequence[tuple[Any, Any]], layers: Sequence[str]) -> xr.Dataset:
    """Arrays ``(step, layer, cell)`` of rank, score and every metric, NaN beyond the cells of a smaller layer.

    `moments`: step and epoch of each frame.
    """
    xr = require("xarray", "history")
    whole = all_cells(frames)
    whole.insert(0, _CHECK, [check for check, frame in enumerate(frames) for _ in range(len(frame))])
    whole = whole[whole["layer"].isin(layers)]
    rows = whole["layer"].map({name: place for place, name in enumerate(layers)})
    at = tuple(place.to_numpy(int) for place in (whole[_CHECK], rows, whole["cell"]))
    size = int(at[-1].max(initial=-1)) + 1
    arrays = {
        str(path): np.full((len(frames), len(layers), size), np.nan)
        for path in whole
        if path not in (*_OF_A_ROW, _CHECK)
    }
    for path, values in arrays.items():
        values[at] = whole[path]
    dims = ("step", "layer", "cell")
    steps, epochs = ([moment[part] for moment in moments] for part in (0, 1))
    coords = {"step": steps, "epoch": ("step", epochs), "layer": list(layers), "cell": np.arange(size)}
    return xr.Dataset({path: (dims, values, _about(path)) for path, values in arrays.items()}, coords)


def _about(path: str) -> dict[str, str]:
    """What a metric means, and its unit."""
    spec = CATALOG.get(path)
    return {} if spec is None else {"long_name": spec.words} | ({"units": spec.unit} if spec.unit else {})
