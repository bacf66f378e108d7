"""Signs that a training goes wrong, seen in the cells before the loss shows them.

The rules and their thresholds were chosen on 16 kinds of planted faults and 30 healthy runs (docs/metrics.md).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch

from lstm_monitor.core.records import Alarm, Metrics
from lstm_monitor.report.layer_report import LayerReport

MOST_SATURATED = 0.5
COLLAPSED, RUNAWAY = 0.5, 50.0
MOST_DEAD = 0.5
SAME = 1e-6

_ADVICE = {
    "unchanged": "give its parameters to the optimizer, look for a detach() or no_grad() between it and the loss, or "
    "set requires_grad=False if it is frozen on purpose",
    "saturated": "lower the learning rate, or clip gradients",
    "collapsed": "it forgets at once: look at the learning rate and at the bias of its forget gate",
    "runaway": "it hardly forgets any more: look at the learning rate and at the scale of the inputs",
    "dead": "lower the learning rate, or make the layer smaller",
}
FROM_THE_START = ("runaway", "dead")
"""No alarms where they held at the first check already: an initialization may be meant so, and learning wakes cells."""


def seen(layer: LayerReport) -> dict[str, str]:
    """What one check of a layer shows by itself: the rules that hold, each with its finding in words."""
    return dict(pair for rule in (_saturated, _time_scales, _dead) for pair in rule(layer))


def alarms(layer: LayerReport, at_first: Collection[str] = (), earlier: Metrics | None = None) -> tuple[Alarm, ...]:
    """The alarms of a layer.

    Args:
        layer: what was found now.
        at_first: the rules that held at its first check.
        earlier: its metrics at the check before, if it was to learn since.
    """
    found = {name: words for name, words in seen(layer).items() if name not in FROM_THE_START or name not in at_first}
    if earlier is not None and not layer.frozen and _is_unchanged(layer.metrics, earlier):
        found["unchanged"] = "its responses have not changed at all since the check before"
    return tuple(Alarm(str(layer.key), name, words, _ADVICE[name]) for name, words in found.items())


def _is_unchanged(now: Metrics, earlier: Metrics) -> bool:
    cells, before = now["step/peak_response"].cells, earlier["step/peak_response"].cells
    return cells.shape == before.shape and torch.allclose(cells, before.to(cells), rtol=SAME, atol=0.0, equal_nan=True)


def _saturated(layer: LayerReport) -> Iterator[tuple[str, str]]:
    share = float(layer.metrics["gates/saturation"].cells.mean())
    if share > MOST_SATURATED:
        yield "saturated", f"{100 * share:.0f}% of its gate activations are saturated"


def _time_scales(layer: LayerReport) -> Iterator[tuple[str, str]]:
    """Over the cells with a defined time constant, where they are at least half of the layer."""
    if "gates/tau_f" not in layer.metrics:
        return
    tau = layer.metrics["gates/tau_f"].cells
    known = tau[torch.isfinite(tau)]
    if 2 * len(known) < len(tau) or not len(known):
        return
    if float(known.median()) < COLLAPSED:
        yield "collapsed", f"its forget gates have a median time constant of {float(known.median()):.2g} steps"
    if float((known > RUNAWAY).float().mean()) > 0.5:
        yield "runaway", f"most of its forget gates have a time constant over {RUNAWAY:g} steps"


def _dead(layer: LayerReport) -> Iterator[tuple[str, str]]:
    dead = layer.dead()
    if dead is not None and float(dead.float().mean()) >= MOST_DEAD:
        yield "dead", f"{int(dead.sum())} of its {layer.hidden_size} cells hardly move on held-out data"
