"""A report as one Parquet file: a row a cell, and all else as JSON in the file's metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from itertools import accumulate
from typing import Any
from zlib import crc32

from lstm_monitor.errors import require
from lstm_monitor.history.columns import Columns, cell_table, taken_from
from lstm_monitor.history.plain import from_plain, to_plain
from lstm_monitor.layer_report import LayerReport
from lstm_monitor.report import Report
from lstm_monitor.study.tables import study_table

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
