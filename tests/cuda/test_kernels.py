"""Cells alone on the device, by Triton's kernels and by torch, against the float64 loop on the host."""

import math
from dataclasses import dataclass

import pytest
import torch

from lstm_monitor.core.definitions import Thresholds
from lstm_monitor.core.undisturbed import undisturbed
from lstm_monitor.engines.choice import engine_for
from lstm_monitor.engines.lone_cells import LoneCells, joined_cells
from lstm_monitor.engines.torch_engine.engine import ENGINE as TORCH
from lstm_monitor.engines.triton_engine.engine import ENGINE as TRITON
from tests.cuda import truth
from tests.cuda.place import DEVICE, DRY, MARKS, sized, there
from tests.cuda.truth import KINDS, away

pytestmark = MARKS


@pytest.fixture(autouse=True)
def _full_precision():
    """As in a check: torch's engine runs a few cells of an LSTM by cuDNN."""
    with undisturbed():
        yield


TYPICAL = "99% of the trace within"
ENGINES = {"triton": TRITON, "torch": TORCH}


@dataclass(frozen=True)
class Case:
    """`steps` and `samples` of steps and sines; the largest error, and that of 99 values in 100, that float32 may make.

    The largest is many times as large where a cell comes near the edge of two basins.
    """

    size: int
    steps: int = 64
    samples: int = 40
    scale: float = 1.0
    most: float = 2e-4
    typical: float = 3e-6


CASES = {
    "many cells": Case(sized(1024, 9), sized(512, 9), sized(256, 8), most=2e-3),
    "an odd number of cells": Case(sized(131, 67), sized(97, 4), sized(77, 11)),
    "one cell": Case(1, sized(64, 6), sized(40, 8)),
    "one step": Case(sized(65, 5), 1, 8),
    "saturated": Case(sized(300, 5), 1, 8, 1e4, 5e-3, 1e-3),
    "tiny": Case(sized(300, 5), sized(64, 8), sized(40, 8), 1e-8, 1e-6, 6e-7),
}


def errors_of(engine, case, kind, dtype=torch.float32):
    """Errors of the trace and of every fact, by name."""
    cells, start = truth.cells(kind, case.size, case.scale), truth.state(kind, case.size)
    signals, limits = truth.signals(case.steps, case.samples), Thresholds()
    there, begin, given = truth.moved((cells, start, signals), DEVICE, dtype)
    trace, _ = engine.cell_trace(there, given.steps, given.step_way, begin)
    found = engine.cell_facts(there, given, begin, begin[0][0], limits)
    steps = truth.exactly(cells, signals.steps, signals.step_way, start)
    errors = {"trace": away(trace, steps), TYPICAL: truth.typical(trace, steps)}
    errors |= truth.steps_away(found.steps, steps, start[0][0].double())
    if case.scale > 1e3:
        return errors
    sines = truth.exactly(cells, signals.sines, signals.sine_way, start)
    return errors | truth.sines_away(found.sines, sines, case.samples)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CASES)
def test_cells_alone(name, engine, kind, tell):
    errors = errors_of(ENGINES[engine], CASES[name], kind)
    typical = errors.pop(TYPICAL)
    worst = max(errors, key=errors.__getitem__)
    tell("largest error", errors[worst])
    tell("of", worst)
    tell(TYPICAL, typical)
    assert typical <= CASES[name].typical
    assert errors[worst] <= CASES[name].most, errors


@pytest.mark.parametrize("kind", KINDS)
def test_cells_alone_in_float64(kind, tell):
    errors = errors_of(TORCH, CASES["an odd number of cells"], kind, torch.float64)
    tell("largest error", max(errors.values()))
    assert max(errors.values()) <= 1e-9, errors


def test_the_engine_of_the_device_is_triton():
    engine = engine_for(DEVICE, torch.float32)
    assert engine.name == ("torch" if DRY else "triton")
    assert engine_for(DEVICE, torch.float64).name == "torch"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", sized(KINDS, ("gru",)))
def test_layers_joined_are_simulated_as_each_by_itself(kind, engine):
    parts = [there_cells(truth.cells(kind, size)) for size in sized((5, 64, 200), (5, 2))]
    signals, sizes = truth.moved(truth.signals(sized(64, 4), 8), DEVICE), [part.hidden_size for part in parts]
    start = [there(truth.state(kind, size)) for size in sizes]
    together = tuple(torch.cat(part, dim=-1) for part in zip(*start, strict=True))
    found = ENGINES[engine].cell_facts(joined_cells(parts), signals, together, together[0][0], Thresholds())
    for k, (final, std) in enumerate(
        zip(found.steps.final.split(sizes, -1), found.sines.std.split(sizes, -1), strict=True)
    ):
        alone = ENGINES[engine].cell_facts(parts[k], signals, start[k], start[k][0][0], Thresholds())
        torch.testing.assert_close(final, alone.steps.final, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(std, alone.sines.std, atol=1e-6, rtol=1e-5)


def there_cells(cells):
    return truth.moved(cells, DEVICE)


@pytest.mark.parametrize(("engine", "kind"), [*(("triton", kind) for kind in sized(KINDS, ("gru",))), ("torch", "gru")])
def test_a_cell_that_is_nan_spoils_no_other(engine, kind):
    """With torch's engine not a few cells of an LSTM: they are run as the diagonal of one layer."""
    size, spoilt = sized(70, 5), 2
    cells, start = there_cells(truth.cells(kind, size)), there(truth.state(kind, size))
    signals = truth.moved(truth.signals(6, 8), DEVICE)
    sound = ENGINES[engine].cell_facts(cells, signals, start, start[0][0], Thresholds())
    cells.bias[0, spoilt] = math.nan
    found = ENGINES[engine].cell_facts(cells, signals, start, start[0][0], Thresholds())
    others = [k for k in range(size) if k != spoilt]
    for name, values in vars(found.steps).items():
        if name != "steps":
            assert values[:, spoilt].isnan().all(), name
            torch.testing.assert_close(values[:, others], getattr(sound.steps, name)[:, others], atol=0, rtol=0)
    assert found.sines.std[:, spoilt].isnan().all()
    torch.testing.assert_close(found.sines.std[:, others], sound.sines.std[:, others], atol=0, rtol=0)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_bits_again_and_on_another_stream(engine):
    """Nothing that a kernel reads was left unwritten, and it runs on the stream that is current."""
    cells, start = there_cells(truth.cells("lstm", sized(500, 5))), there(truth.state("lstm", sized(500, 5)))
    signals = truth.moved(truth.signals(sized(128, 4), 8), DEVICE)

    def given():
        found = ENGINES[engine].cell_facts(cells, signals, start, start[0][0], Thresholds())
        return [*found.steps.__dict__.values(), found.sines.std, *found.sines.folded]

    first = given()
    for values in (given(), on_another_stream(given)):
        for one, other in zip(first, values, strict=True):
            torch.testing.assert_close(one, other, atol=0, rtol=0, equal_nan=True)


def on_another_stream(action):
    if DRY:
        return action()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = action()
    torch.cuda.current_stream().wait_stream(stream)
    return found


@pytest.mark.parametrize("engine", ENGINES)
def test_views_of_some_cells(engine):
    cells, start = there_cells(truth.cells("gru", 12)), there(truth.state("gru", 12))
    signals, part = truth.moved(truth.signals(6, 8), DEVICE), slice(3, 8)
    view = LoneCells("gru", cells.own[:, part], cells.bias[:, part], cells.inner[part], cells.drive[..., part])
    some = ENGINES[engine].cell_facts(view, signals, (start[0][:, part],), start[0][0, part], Thresholds())
    whole = ENGINES[engine].cell_facts(cells, signals, start, start[0][0], Thresholds())
    torch.testing.assert_close(some.steps.final, whole.steps.final[:, part], atol=1e-6, rtol=0)
