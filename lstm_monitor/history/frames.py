"""A history as tables and arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lstm_monitor.errors import require
from lstm_monitor.metrics.catalog import CATALOG
from lstm_monitor.report import Report

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

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
