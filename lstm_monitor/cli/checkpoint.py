"""Characterize the recurrent layers of a checkpoint, of which only the weights are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lstm_monitor.characterization import characterize, examine
from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.core.errors import choose
from lstm_monitor.core.records import Importance, Snapshot
from lstm_monitor.core.terms import Kind
from lstm_monitor.importance.ranking import OF_THE_NETWORK, check_ranking_name
from lstm_monitor.layers.checkpoints.files import read_file
from lstm_monitor.layers.checkpoints.skeletons import Skeleton, skeleton_of
from lstm_monitor.layers.checkpoints.states import State, state_of
from lstm_monitor.layers.finding import find_layers
from lstm_monitor.layers.layer import Layers
from lstm_monitor.report.report import Report, versions
from lstm_monitor.snapshots.taking import snapshot

KINDS: tuple[Kind, ...] = ("lstm", "gru", "rnn_tanh", "rnn_relu")
WHY_NO_RUN = "a checkpoint holds the weights alone and no network to run"


@dataclass(frozen=True, eq=False)
class Characterized:
    """The report of a checkpoint's layers, and what a reader has to know about how they were read."""

    report: Report
    notes: tuple[str, ...] = ()


def characterize_checkpoint(
    path: str | Path,
    *,
    kind: Kind | None = None,
    layers: str | Sequence[str] = "*",
    rank_by: str = "auto",
    prefix: str = "",
    unsafe_pickle: bool = False,
) -> Characterized:
    """Measure and rank the cells of every recurrent layer in a checkpoint, as `characterize` does without data.

    Args:
        path: a file of ``torch.save``, a Lightning checkpoint, or a safetensors file.
        kind: what the layers are whose shapes leave that open: "rnn_tanh" or "rnn_relu".
        layers: glob or globs over layer names.
        rank_by: "auto" or "std_x_outgoing" (std on random sequences x outgoing weights), or a metric's name. Where the
            checkpoint is that of a bare nn.LSTM, GRU or RNN everything that `characterize` takes.
        prefix: only names that start with it, such as ``model.encoder``.
        unsafe_pickle: load what is refused otherwise by unpickling it, which runs code of whoever made the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no checkpoint, one that is refused, no recurrent weights in it, or a kind that is needed.
    """
    check_ranking_name(rank_by)
    content = read_file(path, unsafe_pickle)
    if isinstance(content, nn.Module) and not isinstance(content, torch.jit.ScriptModule):
        return Characterized(characterize(content.get_submodule(prefix), layers=layers, rank_by=rank_by))
    state = state_of(content.state_dict() if isinstance(content, nn.Module) else content, prefix)
    skeleton = skeleton_of(state, None if kind is None else _checked(kind))
    if not skeleton.skipped and not _has_layers(skeleton.model):
        raise ValueError(
            f"{path} holds no recurrent weights (weight_ih_l0, weight_hh_l0 or such). {_listed(state, content)}"
        )
    report = _report(skeleton, _found(skeleton, layers), rank_by)
    return Characterized(report, skeleton.notes)


def _checked(kind: str) -> Kind:
    choose("kind", kind, KINDS)
    return kind  # type: ignore[return-value]  # it is one of them now


def _has_layers(model: nn.Module) -> bool:
    return any(isinstance(module, nn.RNNBase | nn.RNNCellBase) for module in model.modules())


def _listed(state: State, content: Any) -> str:
    shown = [f"{name} {tuple(tensor.shape)}" for name, tensor in state.items()]
    if shown:
        return f"It holds {len(shown)} tensors: {', '.join(shown[:6])}{', ...' if len(shown) > 6 else ''}"
    names = [str(name) for name in content] if isinstance(content, dict) else []
    return f"It is a {type(content).__name__}" + (f" of {', '.join(names[:12])}" if names else "")


def _found(skeleton: Skeleton, select: str | Sequence[str]) -> Layers:
    """The layers selected; ValueError where it is not known what one of them computes."""
    if not _has_layers(skeleton.model):
        raise ValueError(f"no layer of the checkpoint can be read: {'; '.join(map(str, skeleton.skipped))}")
    found = find_layers(skeleton.model, select)
    unknown = [str(layer.key) for layer in found if layer.key.path in skeleton.open_kind]
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)}: one row a cell, a plain RNN, whose nonlinearity no checkpoint holds; add "
            "--kind rnn_tanh (torch's default) or --kind rnn_relu"
        )
    return found


def _report(skeleton: Skeleton, found: Layers, rank_by: str) -> Report:
    skipped = tuple(map(str, skeleton.skipped))
    if isinstance(skeleton.model, nn.RNNBase | nn.RNNCellBase):  # a bare layer is a network that can be run
        names = [str(layer.key) for layer in found]
        return replace(characterize(skeleton.model, layers=names, rank_by=rank_by), skipped=skipped)
    if rank_by in OF_THE_NETWORK and rank_by != "auto":
        raise ValueError(f"rank_by={rank_by!r} runs the network, but {WHY_NO_RUN}; give std_x_outgoing, or a metric")
    taken = snapshot(skeleton.model, layers=found)
    taken = taken if skeleton.ordered else tuple(_certain(snap, skeleton.model) for snap in taken)
    snaps = [replace(snap, importance=Importance("", WHY_NO_RUN, None)) for snap in taken]
    layers = tuple(report for report, _ in examine(snaps, {}, rank_by, Thresholds()))
    return Report(layers, skipped=skipped, versions=versions())


def _certain(snap: Snapshot, model: nn.Module) -> Snapshot:
    """The snapshot without a reader where several modules could be it, and nothing says which comes next."""
    module = model.get_submodule(snap.key.path)
    if (snap.key.index or 0) + 1 < getattr(module, "num_layers", 1):
        return snap
    width = getattr(module, "proj_size", 0) or snap.hidden_size
    width *= 1 + getattr(module, "bidirectional", False)
    sizes = [getattr(other, "in_features", getattr(other, "input_size", 0)) for other in model.modules()]
    return snap if sizes.count(width) == 1 else replace(snap, outgoing=None, reader=None)
