"""Snapshots of layers as safetensors: tensors by name, all else as JSON in the file's metadata; never a pickle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from lstm_monitor.core.codec import from_plain, to_plain
from lstm_monitor.core.errors import require
from lstm_monitor.core.records import Snapshot
from lstm_monitor.core.undisturbed import undisturbed
from lstm_monitor.core.weights import LayerWeights
from lstm_monitor.snapshots.taking import run_sequences

KEY = "lstm_monitor"


def storable(snapshots: Sequence[Snapshot]) -> tuple[Snapshot, ...]:
    """Those made of weights; a registered cell that runs by its own ``step`` is code, which no file here holds."""
    return tuple(snap for snap in snapshots if isinstance(snap.weights, LayerWeights))


def snapshots_to_bytes(snapshots: Sequence[Snapshot]) -> bytes:
    """One file of the snapshots of a check, on the host.

    The hidden states and gates on the held-out sequences are left out: they follow from the rest.
    """
    named = _Named()
    bare = [replace(snap, held_out_hidden=None, held_out_gates=None) for snap in snapshots]
    plain = {str(snap.key): to_plain(snap, named, str(snap.key)) for snap in bare}
    tensors = {name: _own(tensor) for name, tensor in named.tensors.items()}
    data: bytes = require("safetensors.torch", "history").save(tensors, {KEY: json.dumps(plain)})
    return data


def bytes_to_snapshots(data: bytes) -> tuple[Snapshot, ...]:
    """The snapshots in a file, equal to what was written."""
    tensors = require("safetensors.torch", "history").load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    plain = json.loads(header["__metadata__"][KEY])
    return tuple(_whole(from_plain(Snapshot, snap, tensors.__getitem__)) for snap in plain.values())


def _whole(snap: Snapshot) -> Snapshot:
    if snap.held_out is None or not isinstance(snap.weights, LayerWeights):
        return snap
    with undisturbed():
        return replace(snap, held_out_hidden=run_sequences(snap.weights, snap.held_out))


class _Named:
    """Names tensors by the layer and their place in its snapshot; one that is there twice has one name."""

    def __init__(self) -> None:
        """None yet."""
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[int, str] = {}

    def __call__(self, owner: Any, path: str, tensor: Tensor) -> str:
        """The name of the tensor."""
        name = self._names.setdefault(id(tensor), path)
        self.tensors[name] = tensor
        return name


def _own(tensor: Tensor) -> Tensor:
    """Contiguous, in memory that no other tensor shares: safetensors refuses others."""
    dense = tensor.contiguous()
    return dense if dense.untyped_storage().nbytes() == dense.nbytes else dense.clone()
