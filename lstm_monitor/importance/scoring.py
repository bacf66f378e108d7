"""How much a network's output needs each cell: ask the whole network, or say why it cannot be asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from lstm_monitor.core.float64 import doubled
from lstm_monitor.core.records import Importance, Snapshot
from lstm_monitor.core.terms import LayerKey
from lstm_monitor.core.undisturbed import undisturbed
from lstm_monitor.importance.ranking import GREEDY, MEASURED, OF_THE_NETWORK, RANDOM_SENSITIVITY, SENSITIVITY, UNCENTRED
from lstm_monitor.importance.removal.greedy import removal_order
from lstm_monitor.importance.removal.network import Network
from lstm_monitor.importance.removal.single_cells import singles
from lstm_monitor.importance.sensitivity.scores import sensitivities
from lstm_monitor.layers.finding import OWN_CODE
from lstm_monitor.layers.layer import CustomLayer, Layers
from lstm_monitor.snapshots.operating_point import random_bank
from lstm_monitor.snapshots.outputs import Select
from lstm_monitor.snapshots.recording import HELD_OUT_STEPS
from lstm_monitor.snapshots.runs import Run, runs_of
from lstm_monitor.snapshots.taking import with_gates

_WORDS = {
    SENSITIVITY: "centred output sensitivity on held-out data",
    UNCENTRED: "output sensitivity on held-out data, not centred",
    RANDOM_SENSITIVITY: "centred output sensitivity on random sequences",
    MEASURED: "measured effect on the output of removing the cell, on held-out data",
    GREEDY: "greedy order of removal on held-out data, the last to be removed first",
}
NO_RUN = "the network could not be run (give held_out=, or forward= where it takes its batch in another way)"


def assess(
    snaps: Sequence[Snapshot],
    model: nn.Module,
    layers: Layers,
    runs: Sequence[Run],
    by: str = "auto",
    *,
    select: Select | None = None,
    max_steps: int = HELD_OUT_STEPS,
) -> tuple[Snapshot, ...]:
    """The snapshots with what the network says of their cells, where the ranking `by` needs it.

    "auto" never fails: what cannot be done is said in the importance's words. Without runs the sensitivity is that on
    random sequences, where the model takes what its first recurrent layer takes.

    Raises:
        ValueError: a ranking that was asked for by its name cannot be made on these runs.
    """
    if by not in OF_THE_NETWORK:
        return tuple(snaps)
    asked = Layers(tuple(layer for layer in layers if not isinstance(layer, CustomLayer)))
    found = dict(_nothing(snaps, OWN_CODE))
    with undisturbed(model):
        if runs and by not in (MEASURED, GREEDY):
            snaps = [with_gates(snap) for snap in snaps]
        if asked:
            keys = {layer.key for layer in asked}
            found |= _found([snap for snap in snaps if snap.key in keys], model, asked, runs, by, select, max_steps)
    return tuple(replace(snap, importance=found[snap.key]) for snap in snaps)


def _found(  # what `assess` was given
    snaps: Sequence[Snapshot],
    model: nn.Module,
    layers: Layers,
    runs: Sequence[Run],
    by: str,
    select: Select | None,
    max_steps: int,
) -> Mapping[LayerKey, Importance]:
    if not runs:
        return _without_data(snaps, model, layers, select, max_steps)
    name = SENSITIVITY if by == "auto" else by
    try:
        scores = _scores(snaps, model, layers, runs, name, select, max_steps)
    except Exception as error:  # whatever a model or `select` raises on its way
        if by != "auto":
            raise
        return _nothing(snaps, f"the output's sensitivity could not be taken ({_first_line(error)})")
    return {key: Importance(name, _WORDS[name], values) for key, values in scores.items()}


def _scores(  # as `_found`
    snaps: Sequence[Snapshot],
    model: nn.Module,
    layers: Layers,
    runs: Sequence[Run],
    name: str,
    select: Select | None,
    max_steps: int,
) -> Mapping[LayerKey, Tensor]:
    if name in (SENSITIVITY, UNCENTRED):
        centred = name == SENSITIVITY
        return sensitivities(model, layers, runs, centred=centred, output=select, max_steps=max_steps, snaps=snaps)
    network = Network(model, layers, runs, select=select)
    if name == MEASURED:
        return {layer.key: singles(network, layer.key).output_effects() for layer in layers}
    return {layer.key: greedy_scores(removal_order(network, layer.key)) for layer in layers}


def greedy_scores(order: Tensor) -> Tensor:
    """Places as scores ``(H,)``: H for the first of an order ``(H,)``, 1 for the last."""
    return len(order) - doubled(order.argsort())


def _without_data(
    snaps: Sequence[Snapshot], model: nn.Module, layers: Layers, select: Select | None, max_steps: int
) -> Mapping[LayerKey, Importance]:
    """The sensitivity on random sequences, where the model can be run on them."""
    first = layers[0]
    if all(snap.point.source == "held_out" for snap in snaps):
        return _nothing(snaps, NO_RUN)
    bank = random_bank(next(snap for snap in snaps if snap.key == first.key).point).inputs
    try:
        runs = runs_of(model, layers, bank if getattr(first.module, "batch_first", True) else bank.transpose(0, 1))
        scores = sensitivities(model, layers, runs, output=select, max_steps=max_steps)
    except Exception:  # random sequences may be anything but what the model takes
        return _nothing(snaps, NO_RUN)
    return {key: Importance(RANDOM_SENSITIVITY, _WORDS[RANDOM_SENSITIVITY], values) for key, values in scores.items()}


def _nothing(snaps: Sequence[Snapshot], words: str) -> Mapping[LayerKey, Importance]:
    return {snap.key: Importance("", words, None) for snap in snaps}


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
