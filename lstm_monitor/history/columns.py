"""Tensors with a value for each cell as columns of a table, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lstm_monitor.errors import require
from lstm_monitor.history.plain import dtype_name, dtype_of, read, written
from lstm_monitor.layer_report import LayerReport, RankHistory, Trace
from lstm_monitor.records import Metric, Ranking

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
