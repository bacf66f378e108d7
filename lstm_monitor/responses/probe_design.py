"""The stimuli of a layer's checks, over as many steps as its cells need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch

from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.core.distributed import shared
from lstm_monitor.core.records import Probe, Snapshot
from lstm_monitor.core.terms import LayerKey
from lstm_monitor.responses.probing import flagged_share
from lstm_monitor.responses.rest import settle
from lstm_monitor.responses.stimuli import default_horizon, default_stimuli

MAX_HORIZON = 1024
FLAGGED_SHARE = 0.05


def probes_for(
    snaps: Sequence[Snapshot], probes: Mapping[LayerKey, Probe], thresholds: Thresholds, horizon: int | None
) -> list[Probe]:
    """The probe of each layer: the one given for it, or a new one; the processes share the design."""
    new = [snap for snap in snaps if snap.key not in probes]
    designed = shared([partial(_horizon, snap, thresholds, horizon) for snap in new]) if new else []
    made = {snap.key: _probe(snap, steps) for snap, steps in zip(new, designed, strict=True)}
    return [probes.get(snap.key) or made[snap.key] for snap in snaps]


def design_probe(snap: Snapshot, thresholds: Thresholds, horizon: int | None = None) -> Probe:
    """The default stimuli over `horizon` steps, by default over as many as the cells need.

    Then the horizon starts at the task's length (at least 64) and doubles until at most 5% of the cells are flagged
    (drifting or oscillating at the end), up to 1,024.
    """
    with torch.no_grad():
        return _probe(snap, _horizon(snap, thresholds, horizon))


def _horizon(snap: Snapshot, thresholds: Thresholds, horizon: int | None) -> int:
    if horizon is not None:
        return horizon
    steps, rest = default_horizon(snap.point), settle(snap, "coupled", thresholds)
    while steps < MAX_HORIZON:
        stimuli = [stimulus for stimulus in default_stimuli(snap, steps) if stimulus.kind == "step"]
        if float(flagged_share(snap, stimuli, rest, thresholds)) <= FLAGGED_SHARE:
            break
        steps = min(2 * steps, MAX_HORIZON)
    return steps


def _probe(snap: Snapshot, horizon: int) -> Probe:
    stimuli = default_stimuli(snap, horizon)
    return Probe(snap.point, *(tuple(s for s in stimuli if s.kind == kind) for kind in ("step", "sine")))
