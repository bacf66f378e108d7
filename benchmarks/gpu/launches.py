"""Cells alone by the Triton kernels, beside torch's engine; and the layer as trained, beside the bare op."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch
from engines import Work, coupled, decoupled, fused, work
from torch import Tensor

from gpu.clocks import device, first_use, middle, on_device, on_host, shown, sized, wait
from gpu.parts import make
from gpu.telling import DRY, NO_GPU, row, table, target
from lstm_monitor.core.undisturbed import undisturbed
from lstm_monitor.engines.facts import Engine
from lstm_monitor.engines.fused import zero_state
from lstm_monitor.engines.torch_engine.engine import ENGINE as TORCH
from lstm_monitor.engines.triton_engine.engine import ENGINE as TRITON

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SIZES = (128, 512, 4096)
STEPS = sized(512, 64)  # the longest sine has a period of 64, which fits once into the second half of the steps
MOST = 0.5
R = TypeVar("R", bound="DataclassInstance")


def moved(record: R) -> R:
    """A record, and those in it, with their tensors on the device."""
    values = {f.name: getattr(record, f.name) for f in fields(record)}
    tensors = {name: value.to(device()) for name, value in values.items() if isinstance(value, Tensor)}
    records = {
        name: moved(value) for name, value in values.items() if is_dataclass(value) and not isinstance(value, type)
    }
    return replace(record, **tensors, **records)


def layer_of(size: int) -> Work:
    """A layer of that many cells and 16 stimuli, on the device."""
    return moved(work(sized(size, 3), 2 * STEPS if DRY else STEPS))


def compile_first() -> None:
    """What Triton does once a machine, and keeps on disk; and what the first call of a process takes."""
    item = layer_of(128)
    first, second = (first_use(decoupled(TRITON, item)) for _ in range(2))
    shown_first = NO_GPU if DRY else f"{first:.0f} ms, the second {second:.2g} ms"
    row("first launch of a process, with Triton's import", "triton", shown_first, "", "")


def alone(size: int, engine: Engine) -> None:
    """All facts of the cells of a layer, and the trace only."""
    item = layer_of(size)
    facts, trace = decoupled(engine, item), partial(
        engine.cell_trace, item.cells, item.signals, item.ways, zero_state(item.weights, 1)
    )  # fmt: skip
    repeats, calls = (21, 5) if engine is TRITON else (5, 1)  # torch's takes a hundred times as long
    times = on_device(facts, repeats, calls)
    returned, done = on_host(facts, repeats)
    row(
        f"cells alone, H={size}",
        engine.name,
        shown(times),
        NO_GPU if DRY else f"{shown(returned)}; done {shown(done)}",
        shown(on_device(trace, repeats, calls)),
    )
    if engine is TRITON and size == SIZES[-1]:
        target(f"a launch, H={size}, S=16, T={STEPS}", middle(times), MOST, "ms")


def as_trained(size: int) -> None:
    """The layer itself: the bare op and the op with all facts, both without TF32."""
    item = layer_of(size)
    bare, full = on_device(fused(item), calls=3), on_device(coupled(TRITON, item), calls=3)
    ratio = NO_GPU if DRY else f"{middle(full) / middle(bare):.2f} times the bare op"
    row(f"as trained, H={size}", "cuDNN", shown(full), NO_GPU if DRY else f"bare op {shown(bare)}", ratio)


def at_its_limit() -> None:
    """How much the launch at the largest size does a second."""
    item = layer_of(SIZES[-1])
    times = on_device(decoupled(TRITON, item))
    steps = 2 * item.cell_steps
    found = NO_GPU if DRY else f"{steps / middle(times) / 1e6:.0f} G cell-steps/s (each response is run twice)"
    row(f"the same, H={SIZES[-1]}", "triton", found, "", "")


def main() -> None:
    """Measure and tell."""
    engines = (TORCH,) if DRY else (TRITON, TORCH)
    parts = {"the first launch": compile_first} if not DRY else {}
    parts |= {f"alone, H={size}, {e.name}": partial(alone, size, e) for e in engines for size in SIZES}
    parts |= {f"as trained, H={size}": partial(as_trained, size) for size in (128, 512, 1024)}
    parts |= {} if DRY else {"at its limit": at_its_limit}
    table(
        f"An LSTM, S=16 (11 steps, 5 sines), T={STEPS}; medians and quartiles.",
        "what", "by", "on the device, a call", "until the call returns", "the trace only",
    )  # fmt: skip
    with torch.no_grad(), undisturbed():
        make(parts)
    wait()


if __name__ == "__main__":
    main()
