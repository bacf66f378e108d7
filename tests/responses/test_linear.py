"""The linearised cells against the plain loop's derivatives, scipy's systems, and small inputs run through the loop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy import signal
from torch import Tensor, nn

import lstm_monitor as lm
from lstm_monitor.core.definitions import Reason
from lstm_monitor.core.records import Metric, OperatingPoint
from lstm_monitor.engines.linearize import Linear, cutoff, dominant_pole, is_stable, linearize, transfer
from lstm_monitor.engines.lone_cells import cells_of
from lstm_monitor.engines.loop_engine import run_loop
from lstm_monitor.layers.registered import registry
from lstm_monitor.metrics.catalog import CATALOG
from lstm_monitor.responses.linear import frequency_response, linear_metrics
from lstm_monitor.responses.probe_design import design_probe
from tests.helpers.custom_modules import OwnCell, start, step

H, F = 24, 3
THRESHOLDS = lm.Thresholds()
KINDS = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
FREQUENCIES = torch.linspace(0, 0.5, 201, dtype=torch.float64)


@cache
def snapshot(kind: str, scale: float = 0.5, seed: int = 0, dtype: torch.dtype = torch.float64) -> lm.Snapshot:
    """A random layer around an operating point that is not zero."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    rows = KINDS[kind] * H
    weights = lm.LayerWeights(
        kind, scale * draw(rows, F), scale * draw(rows, H), scale * draw(rows), scale * draw(rows)
    )
    point = OperatingPoint(draw(F), torch.eye(F, dtype=dtype), 50, "held_out")
    return lm.Snapshot(lm.LayerKey("rnn"), weights, point, 0.3 * draw(H))


_RESTS: dict[lm.Snapshot, tuple[Tensor, ...]] = {}


@dataclass
class Alone:
    """Every cell alone by the plain loop: the others' input in the bias, as the guide defines it."""

    snap: lm.Snapshot
    direction: Tensor

    def __post_init__(self) -> None:
        weights = self.snap.weights
        own = weights.weight_hh * torch.eye(H, dtype=torch.float64).repeat(KINDS[weights.kind], 1)
        frozen = (weights.weight_hh - own) @ self.snap.hidden_mean
        self.weights = replace(weights, weight_hh=own, bias_hh=weights.bias_hh + frozen)
        self.count = 2 if weights.kind == "lstm" else 1

    def run(self, signal: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Hidden ``(T, H)`` and the last state, each part ``(H,)``."""
        inputs = self.snap.point.mean + signal[:, None, None] * self.direction
        hidden, last, _ = run_loop(self.weights, inputs, tuple(part[None] for part in state))
        return hidden[:, 0], tuple(part[0] for part in last)

    def rest(self) -> tuple[Tensor, ...]:
        if self.snap not in _RESTS:
            zeros = torch.zeros(H, dtype=torch.float64)
            _RESTS[self.snap] = self.run(torch.zeros(3000, dtype=torch.float64), (zeros,) * self.count)[1]
        return _RESTS[self.snap]

    def matrices(self) -> Iterator[tuple[np.ndarray, ...]]:
        """A, B, C, D of each cell, by automatic differentiation of one step from rest."""
        rest, still = self.rest(), torch.zeros(1, dtype=torch.float64)

        def after(*point: Tensor) -> Tensor:
            return torch.stack(self.run(point[-1], point[:-1])[1])

        point = (*rest, still)
        ways = [tuple(torch.ones_like(p) * (k == j) for k, p in enumerate(point)) for j in range(len(point))]
        slopes = torch.stack([torch.func.jvp(after, point, way)[1] for way in ways], dim=1)  # (state, by, H)
        for cell in slopes.permute(2, 0, 1).numpy():
            a, b = cell[:, :-1], cell[:, -1:]
            yield a, b, a[:1], b[:1]


def linear_of(snap: lm.Snapshot, direction: Tensor) -> Linear:
    cells = cells_of(snap.weights, snap.hidden_mean, snap.point.mean, direction[:, None])
    return linearize(cells, Alone(snap, direction).rest()[0])


@pytest.fixture(params=KINDS)
def snap(request: pytest.FixtureRequest) -> lm.Snapshot:
    return snapshot(request.param)


@pytest.fixture
def direction() -> Tensor:
    return torch.tensor([0.7, -1.2, 0.4], dtype=torch.float64)


def test_poles_are_the_eigenvalues_of_the_loops_derivative(snap: lm.Snapshot, direction: Tensor) -> None:
    linear = linear_of(snap, direction)
    for k, (a, *_) in enumerate(Alone(snap, direction).matrices()):
        values = np.linalg.eigvals(a)
        largest = values[np.argsort(-np.abs(values) - 1e-9 * values.imag)[0]]
        assert complex(dominant_pole(linear)[k]) == pytest.approx(complex(largest), abs=1e-10)
        assert float(linear.trace[k]) == pytest.approx(np.trace(a), abs=1e-10)
        if len(a) == 2:
            assert float(linear.product[k]) == pytest.approx(np.linalg.det(a), abs=1e-10)
        assert bool(is_stable(linear)[k]) == (np.abs(values).max() < 1)


def test_the_transfer_function_is_scipys(snap: lm.Snapshot, direction: Tensor) -> None:
    found = frequency_response(snap, FREQUENCIES, direction)
    for k, (a, b, c, d) in enumerate(Alone(snap, direction).matrices()):
        if not d.any():  # a relu that is shut, at which scipy warns
            assert not found[:, k].any()
        elif not bool(torch.isnan(found[0, k])):
            _, wanted = signal.dfreqresp(signal.dlti(a, b, c, d), w=2 * math.pi * FREQUENCIES.numpy())
            np.testing.assert_allclose(found[:, k].numpy(), wanted.reshape(-1), atol=1e-10)
    assert torch.isnan(found[0].real).sum() < H / 2


def test_a_small_sine_through_the_loop(snap: lm.Snapshot, direction: Tensor) -> None:
    frequency, size, steps = 1 / 16, 1e-5, 256
    alone = Alone(snap, direction)
    rest, time = alone.rest(), torch.arange(2048, dtype=torch.float64)
    hidden, _ = alone.run(size * torch.sin(2 * math.pi * frequency * time), rest)
    turn = torch.exp(-2j * math.pi * frequency * time[-steps:])
    found = 2j / steps * ((hidden - rest[0])[-steps:].T.to(torch.complex128) @ turn) / size
    wanted = frequency_response(snap, [frequency], direction)[0]
    error = (found - wanted).abs() / wanted.abs().clamp(min=1e-3)
    assert float(error.nanmedian()) < 1e-8


def test_a_small_step_fades_with_the_time_constant(snap: lm.Snapshot, direction: Tensor) -> None:
    alone, linear = Alone(snap, direction), linear_of(snap, direction)
    rest = alone.rest()
    hidden, _ = alone.run(torch.zeros(26, dtype=torch.float64), tuple(part + 1e-4 for part in rest))
    apart, pole = (hidden - rest[0]).abs().numpy(), dominant_pole(linear)
    size, other = np.abs(pole), np.abs(linear.trace - pole.real)
    clear = (pole.imag == 0) & (other < 0.5 * size) & (size > 0.6) & (size < 1)
    wanted = 10 / np.log(apart[15, clear] / apart[25, clear])
    np.testing.assert_allclose(-1 / np.log(size[clear]), wanted, rtol=1e-3)
    assert clear.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0])
def test_the_cutoff_is_the_first_fall(kind: str, scale: float, direction: Tensor) -> None:
    linear = linear_of(snapshot(kind, scale, 1), direction)
    edges, grid = cutoff(linear), np.linspace(0, 0.5, 4001)
    gains = np.abs(transfer(linear, grid))
    for k in range(H):
        goal, edge = gains[0, k] / math.sqrt(2), edges[k]
        if not 0 < abs(dominant_pole(linear)[k]) < 0.9999 or gains[0, k] < 1e-9:
            continue
        if np.isnan(edge):
            assert (gains[:, k] > goal * (1 - 1e-9)).all()
        else:
            assert abs(transfer(linear, np.array([edge]))[0, k]) / goal == pytest.approx(1, abs=1e-7)
            assert (gains[grid < edge - 1e-9, k] > goal * (1 - 1e-9)).all()


def test_a_slow_cell_that_has_not_arrived_yet(direction: Tensor) -> None:
    snap = snapshot("lstm")
    bias = snap.weights.bias_ih.clone()
    bias[H : 2 * H] += 6.0
    slow = replace(snap, weights=replace(snap.weights, bias_ih=bias))
    times = named(linear_metrics(slow, probe_of(slow), THRESHOLDS))["time_constant"].cells
    forget = Alone(slow, direction)
    for k, (a, *_) in enumerate(forget.matrices()):
        largest = np.abs(np.linalg.eigvals(a)).max()
        if largest < 0.995 and not bool(torch.isnan(times[k])):  # after 3,000 steps those have arrived
            assert float(times[k]) == pytest.approx(-1 / math.log(largest), rel=1e-5)
    assert (times > 100).any()


def probe_of(snap: lm.Snapshot) -> lm.Probe:
    return design_probe(snap, THRESHOLDS, 64)


def named(metrics: list[Metric]) -> dict[str, Metric]:
    return {item.name: item for item in metrics}


def test_metrics_are_those_of_the_frequency_response(snap: lm.Snapshot) -> None:
    probe = probe_of(snap)
    found = named(linear_metrics(snap, probe, THRESHOLDS))
    assert [f"linear/{name}" for name in found] == [path for path in CATALOG if path.startswith("linear/")]
    way = probe.sines[0].direction
    wanted = frequency_response(snap, [0.0, *(float(s.frequency or 0) for s in probe.sines)], way)
    same = {"rtol": 1e-9, "atol": 1e-12, "equal_nan": True}
    torch.testing.assert_close(found["dc_gain"].cells, wanted[0].abs(), **same)
    torch.testing.assert_close(found["gain"].values, wanted[1:].abs(), **same)
    loud = wanted[1:].abs() >= 1e-3
    assert torch.equal(loud, ~torch.isnan(found["phase_lag"].values))
    torch.testing.assert_close(found["phase_lag"].values[loud], -wanted[1:].angle()[loud], **same)
    assert found["gain"].labels == tuple(sine.name for sine in probe.sines)
    torch.testing.assert_close(found["gain"].cells, wanted[3].abs(), **same)


def test_they_are_near_the_simulated_ones_where_the_input_is_small(snap: lm.Snapshot) -> None:
    small = replace(snap, point=replace(snap.point, covariance=1e-8 * snap.point.covariance))
    probe = probe_of(small)
    simulated = lm.measure(lm.respond(small, probe.sines, "alone"))["sine_alone/amplitude"].values
    found = named(linear_metrics(small, probe, THRESHOLDS))["gain"].values
    error = (found - simulated).abs() / found
    assert float(error.nanmedian()) < 1e-5


def rnn(own: float, bias: float, kind: str = "rnn_tanh") -> lm.Snapshot:
    snap = snapshot(kind)
    weights = lm.LayerWeights(
        kind,
        torch.ones_like(snap.weights.weight_ih),
        own * torch.eye(H, dtype=torch.float64),
        torch.full((H,), bias, dtype=torch.float64),
        torch.zeros(H, dtype=torch.float64),
    )
    return replace(snap, weights=weights, point=replace(snap.point, mean=torch.zeros(F, dtype=torch.float64)))


@pytest.mark.parametrize(
    ("case", "reason", "defined"),
    [
        (rnn(1.5, 0.0), Reason.UNSTABLE, {"pole": 1.5, "pole_frequency": 0.0}),
        (rnn(-3.0, 0.1), Reason.NOT_AT_REST, {}),
        (rnn(2.0, 0.1, "rnn_relu"), Reason.NOT_AT_REST, {}),
        (rnn(0.5, -1.0, "rnn_relu"), Reason.SILENT, {"pole": 0.0, "time_constant": 0.0, "dc_gain": 0.0, "gain": 0.0}),
        (rnn(0.0, 0.0), Reason.NEVER, {"pole": 0.0, "phase_lag": 0.0, "dc_gain": math.sqrt(3)}),
        (rnn(-0.9, 0.0), Reason.NEVER, {"pole": 0.9, "pole_frequency": 0.5, "dc_gain": math.sqrt(3) / 1.9}),
        (rnn(0.9, 0.0), None, {"pole": 0.9, "time_constant": -1 / math.log(0.9), "dc_gain": math.sqrt(300)}),
    ],
)
def test_what_is_undefined_says_why(case: lm.Snapshot, reason: Reason | None, defined: dict[str, float]) -> None:
    way = torch.full((F,), 1 / math.sqrt(F), dtype=torch.float64)
    probe = probe_of(case)
    probe = replace(probe, sines=tuple(replace(sine, direction=way) for sine in probe.sines))
    found = named(linear_metrics(case, probe, THRESHOLDS))
    for name, value in defined.items():
        assert float(found[name].cells[0]) == pytest.approx(value, abs=1e-12)
    left = {code for item in found.values() for code in item.reasons.unique().tolist()} - {0}
    assert left == ({reason} if reason is not None else set())
    for item in found.values():
        assert torch.equal(torch.isnan(item.values), item.reasons != 0), item.name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0, 5.0, 50.0])
def test_extreme_weights_have_values_or_reasons(kind: str, scale: float) -> None:
    for dtype in (torch.float32, torch.float64):
        snap = snapshot(kind, scale, 2, dtype)
        for item in linear_metrics(snap, probe_of(snap), THRESHOLDS):
            assert item.values.dtype == dtype
            assert torch.equal(torch.isnan(item.values), item.reasons != 0), item.name
            assert not torch.isinf(item.values).any(), item.name


@pytest.mark.parametrize("kind", KINDS)
def test_float32_weights_give_the_same(kind: str) -> None:
    exact, rounded = snapshot(kind), snapshot(kind, dtype=torch.float32)
    probe = probe_of(exact)
    metrics = [named(linear_metrics(s, probe, THRESHOLDS)) for s in (exact, rounded)]
    for name in ("pole", "gain", "dc_gain"):
        torch.testing.assert_close(
            metrics[0][name].values.float(), metrics[1][name].values, rtol=1e-4, atol=1e-6, equal_nan=True
        )


def test_a_registered_cell_has_none() -> None:
    try:
        lm.register_cell(OwnCell, step=step, state=start)
        (custom,) = lm.snapshot(OwnCell("gru"))
        found = linear_metrics(custom, probe_of(custom), THRESHOLDS)
    finally:
        registry._REGISTERED.clear()
    assert [item.path for item in found] == [path for path in CATALOG if path.startswith("linear/")]
    assert all(item.why_nan(0) == "a registered cell has no closed form" for item in found)
    with pytest.raises(ValueError, match=r"registered cell, which has no closed form; use respond\(\)"):
        frequency_response(custom, [0.1])


def test_the_direction_is_that_of_the_default_sines() -> None:
    (snap,) = lm.snapshot(nn.LSTM(F, 4), [torch.randn(30, 2, F)])
    way = lm.default_stimuli(snap)[-1].direction
    found = frequency_response(snap, torch.tensor([0.0, 0.2, 0.5], dtype=torch.float64))
    assert torch.equal(found, frequency_response(snap, [0.0, 0.2, 0.5], way))
    assert found.dtype == torch.complex128
    kept = replace(snap, probe=replace(probe_of(snap), sines=(lm.sinusoid(2 * way, 0.1),)))
    torch.testing.assert_close(frequency_response(kept, [0.2])[0], 2 * found[1])


@pytest.mark.parametrize("frequencies", [[], [0.6], [-0.1], [math.nan], torch.zeros(1, 1), 0.1, "low", [None]])
def test_frequencies_are_from_0_to_a_half(frequencies: list[float]) -> None:
    with pytest.raises(ValueError, match=r"frequencies=.* from 0 to 0.5 cycles per step"):
        frequency_response(snapshot("gru"), frequencies)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"direction=\(2,\) does not fit rnn.l0; give a tensor of shape \(3,\)"):
        frequency_response(snapshot("gru"), [0.1], torch.ones(2))
    with pytest.raises(TypeError, match=r"snapshot=LSTM is no snapshot of a layer; lm.snapshot\(model\) makes them"):
        frequency_response(nn.LSTM(2, 3), [0.1])  # type: ignore[arg-type]
