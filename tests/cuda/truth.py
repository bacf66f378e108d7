"""The float64 loop on the host, and how far what an engine found is from it."""

import math
from dataclasses import fields, is_dataclass, replace

import torch
from torch import Tensor

from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.core.terms import GATES
from lstm_monitor.core.weights import LayerWeights
from lstm_monitor.engines.facts import Signals, window_of
from lstm_monitor.engines.lone_cells import LoneCells
from lstm_monitor.engines.loop_engine import ENGINE as LOOP

KINDS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
FREQUENCIES = (0.3, 1 / 4)


def layer(kind, size, features=3, scale=1.0):
    """Weights as torch first draws them, times a scale."""
    rows, width = len(GATES[kind]) * size, scale / math.sqrt(size)
    return LayerWeights(kind, *(width * (2 * torch.rand(rows, *shape) - 1) for shape in ((features,), (size,), (), ())))


def cells(kind, size, scale=1.0, directions=2):
    """Cells of which some settle and some swing, drift or saturate."""
    gates = len(GATES[kind])
    own, bias, drive = (scale * torch.randn(*shape, gates, size) for shape in ((), (), (directions,)))
    own = own.tanh() if kind == "rnn_relu" else own  # or it grows without end
    return LoneCells(kind, own, bias, scale * torch.randn(size) if kind == "gru" else None, drive)


def signals(steps, samples, main=1):
    """Two steps and two sines along two directions."""
    time = torch.arange(samples, dtype=torch.float64)
    sines = torch.stack([torch.sin(2 * math.pi * f * time) for f in FREQUENCIES], dim=1).float()
    ups = torch.tensor([[1.0, -0.5]]).repeat(steps, 1)
    return Signals(ups, torch.tensor([0, 1]), sines, torch.tensor([1, 0]), FREQUENCIES, main)


def state(kind, size, count=1):
    """Somewhere."""
    return tuple(0.4 * torch.randn(count, size) for _ in range(2 if kind == "lstm" else 1))


def moved(record, *to):
    """A record or a tuple with its tensors on a device, and those of numbers in a type, whatever of both is given."""
    if isinstance(record, Tensor):
        numbers = record.is_floating_point()
        for place in to:
            record = record.to(place) if numbers or isinstance(place, torch.device) else record
    elif isinstance(record, tuple):
        return tuple(moved(part, *to) for part in record)
    elif is_dataclass(record):
        return replace(record, **{f.name: moved(getattr(record, f.name), *to) for f in fields(record)})
    return record


def exactly(given: LoneCells, signals, way, start):
    """The responses ``(T, S, H)`` of cells alone in float64, on the host."""
    host = torch.device("cpu"), torch.float64
    return LOOP.cell_trace(moved(given, *host), moved(signals, *host), way.cpu(), moved(start, *host))[0]


def away(found, exact):
    """The largest difference beside the largest value, or 1; infinite where one is finite and the other is not."""
    found, exact = found.cpu().double(), exact.cpu().double()
    if not torch.equal(found.isfinite(), exact.isfinite()):
        return math.inf
    difference = (found - exact).nan_to_num(0.0, 0.0, 0.0).abs().max().item() if exact.numel() else 0.0
    return difference / max(1.0, exact.nan_to_num(0.0, 0.0, 0.0).abs().max().item())


def typical(found, exact):
    """As `away`, of 99 values in 100: a cell that comes near the edge of two basins is beyond that."""
    found, exact = found.cpu().double(), exact.cpu().double()
    return ((found - exact).abs().quantile(0.99) / max(1.0, exact.abs().max().item())).item()


def steps_away(found, y, y0, limits=Thresholds()):  # noqa: B008 - never changed
    """How far `StepFacts` are from those of the responses ``y (T, S, H)``; an index by how far its sample misses."""
    found, scale = moved(found, torch.device("cpu"), torch.float64), max(1.0, y.abs().max().item())
    tail = max(limits.tail_least, len(y) // limits.tail_share)
    end = y[-tail:]
    final, top, bottom = end.mean(0), y.amax(0), y.amin(0)
    values = {"top": top, "bottom": bottom, "final": final, "last": y[-1], "tail_top": end.amax(0),
              "tail_bottom": end.amin(0), "initial": y0.expand_as(top)}  # fmt: skip
    errors = {name: away(getattr(found, name), value) for name, value in values.items()}
    delta, peak = final - y0, torch.maximum(top - y0, y0 - bottom)
    washout = (delta.abs() < limits.washout * peak) & (peak >= limits.silent)
    band = limits.band * torch.where(washout, peak, delta.abs())
    gone = delta.sign() * (y - y0)
    errors["peak_at"] = _first((y - y0).abs() - peak, found.peak_at) / scale
    errors["rise_from"] = _first(gone - 0.1 * delta.abs(), found.rise_from) / scale
    errors["rise_to"] = _first(gone - 0.9 * delta.abs(), found.rise_to) / scale
    errors["outside"] = _first(((y - final).abs() - band).flip(0), len(y) - 1 - found.outside) / scale
    return errors


def _first(beyond, index):
    """By how much `index` misses the first sample at which `beyond` is not negative; T where there is none."""
    time = torch.arange(len(beyond))[:, None, None]
    early = beyond.masked_fill(time >= index, -math.inf).amax().clamp(min=0)
    late = (-beyond).masked_fill(time != index, -math.inf).amax().clamp(min=0)
    return max(early.item(), late.item())


def sines_away(found, y, samples):
    """The same for `SineFacts`."""
    errors = {"std": 0.0, "folded": 0.0, "window": 0.0}
    for number, frequency in enumerate(FREQUENCIES):
        window = window_of(samples, frequency)
        cut = y[window.start : window.start + window.size, number]
        mean = cut.unflatten(0, (-1, window.period)).mean(0).T
        errors["folded"] = max(errors["folded"], away(found.folded[number], mean))
        errors["std"] = max(errors["std"], away(found.std[number], cut.std(0, correction=0)))
        if number == 1 and found.window is not None:
            errors["window"] = away(found.window, cut.T)
    return errors
