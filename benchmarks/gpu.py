"""On a GPU: cells alone by the Triton kernels, held to float64 and timed; and the layer as trained, by cuDNN.

Prints Markdown. Times are the device's own, between two events, medians with quartiles. Each engine runs by itself,
without what a check falls back to.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch
from engines import DIRECTIONS, Work, coupled, decoupled, fused, work
from timing import table
from torch import Tensor

from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.core.terms import GATES, Kind
from lstm_monitor.engines.facts import StepFacts
from lstm_monitor.engines.fused import zero_state
from lstm_monitor.engines.lone_cells import LoneCells
from lstm_monitor.engines.torch_engine.engine import ENGINE as TORCH
from lstm_monitor.engines.triton_engine.engine import ENGINE

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

EDGE = 2e-5
KINDS: tuple[Kind, ...] = ("lstm", "gru", "rnn_tanh", "rnn_relu")

R = TypeVar("R", bound="DataclassInstance")


def moved(record: R, device: torch.device) -> R:
    """A record, and those in it, with their tensors on another device."""
    values = {f.name: getattr(record, f.name) for f in fields(record)}
    tensors = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
    records = {
        name: moved(value, device)
        for name, value in values.items()
        if is_dataclass(value) and not isinstance(value, type)
    }
    return replace(record, **tensors, **records)


def random_cells(kind: Kind, size: int, dtype: torch.dtype = torch.float32) -> LoneCells:
    """The same cells in any type: some settle, some swing, drift or saturate."""
    torch.manual_seed(1)
    gates = len(GATES[kind])
    own, bias, drive = (torch.randn(*shape, gates, size) for shape in ((), (), (DIRECTIONS,)))
    own = own * 0.3 if kind == "rnn_relu" else own
    inner = torch.randn(size).to(dtype) if kind == "gru" else None
    return LoneCells(kind, own.to(dtype), bias.to(dtype), inner, drive.to(dtype))


def agreement(kind: Kind, item: Work, device: torch.device) -> list[str]:
    """Row of the table of errors: the kernels on the device, and float64 step by step on the CPU."""
    size, given, limits = item.snap.hidden_size, moved(item.given, device), Thresholds()
    cells = moved(random_cells(kind, size), device)
    state = (torch.zeros(1, size, device=device),) * (2 if kind == "lstm" else 1)
    hidden, _ = ENGINE.cell_trace(cells, given.steps, given.step_way, state)
    found = ENGINE.cell_facts(cells, given, state, state[0][0], limits).steps.outside.cpu().double()
    start = tuple(part.cpu().double() for part in state)
    exact, _ = TORCH.cell_trace(
        random_cells(kind, size, torch.float64), item.given.steps.double(), item.given.step_way, start
    )
    facts = TORCH.step_facts(exact, start[0][0], limits)
    wrong = found != facts.outside
    away = distance(exact, torch.maximum(found, facts.outside), facts, limits) > EDGE
    error = (hidden.cpu() - exact).abs().max().item()
    return [kind, f"{error:.1e}", f"{int(wrong.sum())} of {wrong.numel()}", f"{int((wrong & away).sum())}"]


def distance(y: Tensor, index: Tensor, facts: StepFacts, limits: Thresholds) -> Tensor:
    """How far a sample of ``y (T, S, H)``, one a response, is from the edge of the settling band ``(S, H)``."""
    sample = y.gather(0, index.long().clamp(min=0)[None])[0]
    peak = torch.maximum(facts.top - facts.initial, facts.initial - facts.bottom)
    delta = (facts.final - facts.initial).abs()
    washout = (delta < limits.washout * peak) & (peak >= limits.silent)
    return ((sample - facts.final).abs() - limits.band * torch.where(washout, peak, delta)).abs()


def on_device(action: Callable[[], object], repeats: int) -> str:
    """Median and quartiles of the time between two events, milliseconds."""
    for _ in range(3):
        action()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        action()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    low, middle, high = statistics.quantiles(times, n=4)
    return f"{middle:.3f} ms ({low:.3f} to {high:.3f})"


def show_agreement(size: int, steps: int, device: torch.device) -> None:
    """The table of errors."""
    rows = [agreement(kind, work(size, steps), device) for kind in KINDS]
    print(f"Cells alone, H={size}, T={steps}, against float64\n")
    head = ["kind", "largest error of h", "settling differs", f"of these not within {EDGE:g} of the band's edge"]
    print(table(head, rows), flush=True)


def show_decoupled(repeats: int, device: torch.device) -> None:
    """The table of times of cells alone: the trace's kernel is one launch, that of the facts two."""
    rows = []
    for size in (128, 512, 4096, 16384):
        item = moved(work(size, 512), device)
        state = zero_state(item.weights, 1)
        for engine in (ENGINE, TORCH):
            trace = partial(engine.cell_trace, item.cells, item.signals, item.ways, state)
            times = [on_device(action, repeats) for action in (decoupled(engine, item), trace)]
            rows.append([f"{size}", engine.name, *times])
    print("Cells alone, LSTM, S=16 (11 steps, 5 sines), T=512\n")
    print(table(["H", "engine", "all facts", "the trace only"], rows), flush=True)


def show_coupled(repeats: int, device: torch.device) -> None:
    """The table of times of the layer as trained."""
    rows = []
    for size in (128, 512, 1024):
        there = moved(work(size, 512), device)
        bare, full = (on_device(action, repeats) for action in (fused(there), coupled(ENGINE, there)))
        rows.append([f"{size}", bare, full])
    print("The layer as trained, LSTM, S=16, T=512\n")
    print(table(["H", "bare fused op", "with all facts"], rows), flush=True)


def main() -> None:
    """Check, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=21)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py: torch finds no GPU here (torch.cuda.is_available() is False)")
    device = torch.device("cuda", torch.cuda.current_device())
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name(device)}, {options.repeats} repeats\n")
    with torch.no_grad():
        show_agreement(512, 512, device)
        show_decoupled(options.repeats, device)
        show_coupled(options.repeats, device)


if __name__ == "__main__":
    main()
