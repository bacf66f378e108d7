"""A report as one Parquet file: a row a cell, a column a tensor, and all else as JSON in the file's metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from itertools import accumulate
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from lstm_monitor.core.codec import dtype_name, dtype_of, from_plain, read, to_plain, written
from lstm_monitor.core.errors import require
from lstm_monitor.core.records import Metric, Ranking, Trace
from lstm_monitor.report.ablation.tables import study_table
from lstm_monitor.report.layer_report import LayerReport, RankHistory
from lstm_monitor.report.report import Report

INDEX, REPORT, CHECKSUM = b"lstm_monitor", b"lstm_monitor.report", b"lstm_monitor.crc32"
"""The keys of the file's metadata: what it is, the report without the values of the columns, the two's checksum."""


def to_bytes(report: Report, index: Mapping[str, Any]) -> bytes:
    """The file of one report; `index` says what and whose it is.

    Columns: ``layer``, ``cell``, ``rank`` (0 is first), ``score``, ``settled``, each metric as ``group/name``, and
    lists: ``group/name/values`` and ``group/name/reasons`` (over the stimuli), ``trace`` (over time), ``first_gain``
    and ``rank_history``. A metric that a layer has not is null. Of a report without layers: the table of its study.
    """
    pa = require("pyarrow", "history")
    columns = [Columns() for _ in report.layers]
    plain = to_plain(replace(report, layers=(), snapshots=()))
    plain["layers"] = [_plain_layer(layer, found) for layer, found in zip(report.layers, columns, strict=True)]
    study = {} if report.study is None else study_table(report.study)
    table = cell_table(report.layers, columns) if report.layers else pa.table(study)
    metadata = {INDEX: _json(index), REPORT: _json(plain)}
    return _parquet(table, metadata | {CHECKSUM: _checksum(metadata)})


def to_report(data: bytes) -> Report:
    """The report in a file, equal to what was written, without its snapshots."""
    file = parquet_file(BytesIO(data))
    plain = json.loads(checked(file.metadata.metadata)[REPORT])
    layers = plain.pop("layers")
    table = file.read(use_threads=False) if layers else None
    starts = accumulate((layer["size"] for layer in layers), initial=0)
    found = tuple(_layer(layer, table, start) for layer, start in zip(layers, starts, strict=False))
    return replace(from_plain(Report, plain | {"layers": []}), layers=found)


def checked(metadata: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
    """The metadata of a file itself; ValueError if it is damaged."""
    if metadata[CHECKSUM] != _checksum(metadata):
        raise ValueError("its metadata does not fit its checksum")
    return metadata


def _checksum(metadata: Mapping[bytes, bytes]) -> bytes:
    return b"%08x" % crc32(metadata[INDEX] + metadata[REPORT])


def parquet_file(source: Any) -> Any:
    """The Parquet file in an open file; its pages are held to their checksums when they are read."""
    return require("pyarrow.parquet", "history").ParquetFile(source, page_checksum_verification=True)


def _plain_layer(layer: LayerReport, columns: Columns) -> dict[str, Any]:
    """A layer without the values of its columns; the names of stimuli, which many metrics share, once."""
    plain: dict[str, Any] = to_plain(layer, columns)
    labels: dict[tuple[str, ...], int] = {}
    for item in plain["metrics"]["items"]:
        item["labels"] = labels.setdefault(tuple(item["labels"]), len(labels))
    return plain | {"labels": list(labels), "size": layer.hidden_size}


def _layer(plain: dict[str, Any], table: Any, start: int) -> LayerReport:
    for item in plain["metrics"]["items"]:
        item["labels"] = plain["labels"][item["labels"]]
    layer: LayerReport = from_plain(LayerReport, plain, taken_from(table, start, plain["size"]))
    return layer


def _parquet(table: Any, metadata: Mapping[bytes, bytes]) -> bytes:
    parquet = require("pyarrow.parquet", "history")
    options = {"compression": "snappy", "use_dictionary": ["layer"], "write_statistics": False}
    file = BytesIO()
    with parquet.ParquetWriter(file, table.schema, store_schema=False, write_page_checksum=True, **options) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(metadata)
    return file.getvalue()


def _json(plain: Any) -> bytes:
    return json.dumps(plain, allow_nan=False, separators=(",", ":")).encode()


_COLUMNS = {
    (Ranking, "order"): "rank",
    (Ranking, "scores"): "score",
    (LayerReport, "settled"): "settled",
    (LayerReport, "first_gain"): "first_gain",
    (RankHistory, "ranks"): "rank_history",
    (Trace, "change"): "trace",
}


class Columns:
    """The tensors of one layer by the names of their columns, the cells first; others stay in the JSON."""

    def __init__(self) -> None:
        """None yet."""
        self.found: dict[str, Tensor] = {}

    def __call__(self, owner: Any, path: str, tensor: Tensor) -> Any:
        """The name and dtype of the column, or the values."""
        name = _column(owner, path.rsplit("/", 1)[-1])
        if name is None:
            return written(owner, path, tensor)
        self.found[name] = _turned(name, tensor)
        return [name, dtype_name(tensor)]


def _column(owner: Any, field: str) -> str | None:
    if isinstance(owner, Metric):
        return owner.path if field == "cells" else f"{owner.path}/{field}"
    return _COLUMNS.get((type(owner), field))


def _turned(name: str, tensor: Tensor) -> Tensor:
    """The cells first instead of last or back; an order as ranks or back, which is the same act."""
    if name == "rank":
        return tensor.argsort()
    return tensor.T if tensor.dim() == 2 and name != "trace" else tensor


def taken_from(table: Any, start: int, size: int) -> Callable[[Any], Tensor]:
    """Gives back what `Columns` took from the layer in these rows of a table."""

    def values(name: str) -> Tensor:
        column = table[name].slice(start, size).combine_chunks()
        is_list = column.type.num_fields > 0
        array = (column.flatten() if is_list else column).to_numpy(zero_copy_only=False)
        tensor = torch.from_numpy(np.array(array))
        return tensor.reshape(size, -1) if is_list else tensor

    def take(plain: Any) -> Tensor:
        if isinstance(plain, dict):
            return read(plain)
        name, dtype = plain
        return _turned(name, values(name)).to(dtype_of(dtype)).contiguous()

    return take


def cell_table(layers: Sequence[LayerReport], columns: Sequence[Columns]) -> Any:
    """An Arrow table, a row a cell, the layers one below the other."""
    pa = require("pyarrow", "history")
    sizes = [layer.hidden_size for layer in layers]
    names = [str(layer.key) for layer, size in zip(layers, sizes, strict=True) for _ in range(size)]
    arrays = {"layer": pa.array(names), "cell": pa.array(np.concatenate([np.arange(size) for size in sizes]))}
    for name in sorted(dict.fromkeys(name for part in columns for name in part.found), key=_order):
        parts = [part.found.get(name) for part in columns]
        lists = any(part is not None and part.dim() == 2 for part in parts)
        arrays[name] = _lists(pa, parts, sizes) if lists else _numbers(pa, parts, sizes)
    return pa.table(arrays)


def _order(name: str) -> int:
    """Single values first, then lists: by themselves they make the table that people read."""
    first = ("rank", "score", "settled")
    return first.index(name) if name in first else len(first) + name.count("/")


def _numbers(pa: Any, parts: Sequence[Tensor | None], sizes: Sequence[int]) -> Any:
    """An array with nulls for a layer that has no such value."""
    absent = np.repeat([part is None for part in parts], sizes)
    like = next(part.numpy().dtype for part in parts if part is not None)
    values = [np.zeros(size, like) if p is None else p.numpy() for p, size in zip(parts, sizes, strict=True)]
    return pa.array(np.concatenate(values), mask=absent if absent.any() else None)


def _lists(pa: Any, parts: Sequence[Tensor | None], sizes: Sequence[int]) -> Any:
    """An array of lists, empty for a layer that has no such values."""
    lengths = [0 if part is None else part.shape[1] for part in parts]
    offsets = np.concatenate([[0], np.cumsum(np.repeat(lengths, sizes))]).astype(np.int32)
    values = np.concatenate([part.numpy().reshape(-1) for part in parts if part is not None])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
