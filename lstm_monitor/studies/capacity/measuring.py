"""Measure one trained network of a capacity study: its report, its components, and the effect of each cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lstm_monitor.characterization import characterize
from lstm_monitor.core.records import Snapshot
from lstm_monitor.core.terms import LayerKey
from lstm_monitor.core.undisturbed import undisturbed
from lstm_monitor.importance.removal.network import Network
from lstm_monitor.importance.removal.outcomes import output_variance
from lstm_monitor.importance.removal.single_cells import singles
from lstm_monitor.layers.finding import removable_layers
from lstm_monitor.layers.layer import Layers
from lstm_monitor.report.report import Report
from lstm_monitor.snapshots.held_out import Forward
from lstm_monitor.snapshots.outputs import Select
from lstm_monitor.snapshots.runs import runs_of
from lstm_monitor.snapshots.taking import snapshot
from lstm_monitor.studies.capacity.records import SizedLayer, Trained, components_for

Attempt = Callable[[str, Callable[[], Any]], Any]
"""``attempt(what, act)`` returns what `act` returned, None where it raised an error (and notes what failed)."""

_NAN = float("nan")


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The held-out data of a study and how networks are run on them; the fields are those of `capacity_study`."""

    data: Any
    layers: Any = "*"
    forward: Forward | None = None
    lengths: Any = None
    mask: Any = None
    output: Select | None = None
    horizon: int | None = None

    def __post_init__(self) -> None:
        """Data there have to be: everything that is measured rests on them."""
        if self.data is None:
            raise ValueError("held_out=None: give data that the networks are not trained on, as model(x) takes them")

    def check(self, model: Any, size: int) -> None:
        """Raise unless `model` is a module with a recurrent layer of `size` cells."""
        if not isinstance(model, nn.Module):
            raise TypeError(f"build({size}) returned {type(model).__name__}; it must return a torch.nn.Module")
        found = {str(layer.key): layer.module.hidden_size for layer in removable_layers(model, self.layers)}
        if size not in found.values():
            there = ", ".join(f"{name} has {cells}" for name, cells in found.items())
            raise ValueError(
                f"build({size}) returned a network in which no recurrent layer has {size} cells: {there}. "
                "Hand the size on, such as nn.LSTM(features, size)"
            )

    def try_out(self, model: nn.Module) -> None:
        """Run the network, as it is and as it is run for removals; raise if it cannot be, or gives no output."""
        self.components(model)
        with undisturbed(model):
            self.network(model, removable_layers(model, self.layers))

    def network(self, model: nn.Module, layers: Layers) -> Network:
        """The network on all of the data, from which cells can be removed; use it inside `undisturbed(model)`."""
        runs = runs_of(model, layers, self.data, forward=self.forward, lengths=self.lengths, mask=self.mask)
        return Network(model, layers, runs, select=self.output)

    def report(self, model: nn.Module) -> Report:
        """The report of `characterize`."""
        options: dict[str, Any] = {"forward": self.forward, "lengths": self.lengths, "mask": self.mask}
        return characterize(model, self.data, layers=self.layers, horizon=self.horizon, **options)

    def components(self, model: nn.Module) -> dict[LayerKey, float]:
        """The principal components of each layer that hold 95% of the variance."""
        options: dict[str, Any] = {"forward": self.forward, "lengths": self.lengths, "mask": self.mask}
        snaps = snapshot(model, self.data, layers=self.layers, **options)
        return {snap.key: _components(snap) for snap in snaps}

    def effects(self, model: nn.Module) -> tuple[dict[LayerKey, Tensor], float]:
        """What removing each cell ``(H,)`` of each layer changes, as a share of the output's variance, and that."""
        layers = removable_layers(model, self.layers)
        with undisturbed(model):
            network = self.network(model, layers)
            variance = output_variance(network.intact)
            return {layer.key: singles(network, layer.key).output_effects() / variance for layer in layers}, variance


def measure_network(model: nn.Module, data: HeldOut, trained: Trained, attempt: Attempt) -> Trained:
    """The record of a training with what its network shows; what fails is left out."""
    report: Report | None = attempt("characterizing", lambda: data.report(model))
    if report is None:
        return trained
    components: Mapping[LayerKey, float] = attempt("counting components", lambda: data.components(model)) or {}
    found: tuple[dict[LayerKey, Tensor], float] | None = attempt("removing cells", lambda: data.effects(model))
    effects, variance = ({}, _NAN) if found is None else found
    layers = [
        SizedLayer(item, components.get(item.key, _NAN), effects.get(item.key, torch.full((item.hidden_size,), _NAN)))
        for item in report.layers
    ]
    return replace(trained, layers=tuple(layers), report=report, variance=variance)


def _components(snap: Snapshot) -> float:
    if snap.held_out is None or snap.held_out_hidden is None:
        return _NAN
    return components_for(snap.held_out_hidden.transpose(0, 1)[snap.held_out.mask])
