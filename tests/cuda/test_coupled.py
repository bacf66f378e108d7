"""The layer as trained, by cuDNN, against the float64 loop on the host; and the derivatives back through it."""

import math
from dataclasses import dataclass

import pytest
import torch

from lstm_monitor.core.undisturbed import undisturbed
from lstm_monitor.engines.backward import reverse
from lstm_monitor.engines.fused import release_buffers, run_fused
from lstm_monitor.engines.gates import gate_values
from lstm_monitor.engines.loop_engine import run_loop
from tests.cuda import truth
from tests.cuda.place import DEVICE, DRY, MARKS, seen, sized, there
from tests.cuda.truth import KINDS, away

pytestmark = MARKS


@dataclass(frozen=True)
class Case:
    """T steps of N sequences; the largest error that float32 may make."""

    size: int
    steps: int = 64
    count: int = 16
    scale: float = 1.0
    most: float = 2e-5


CASES = {
    "128 cells": Case(sized(128, 6)),
    "many cells": Case(sized(512, 9), sized(256, 9)),
    "odd sizes": Case(sized(131, 7), 33, 3),
    "one cell": Case(1, count=2),
    "one step": Case(sized(65, 5), 1),
    "one sequence": Case(sized(128, 6), 40, 1),
    "saturated": Case(sized(96, 5), 1, scale=1e4, most=2e-2),
    "tiny": Case(sized(96, 5), scale=1e-8, most=5e-7),
}


def given(kind, case):
    weights = truth.layer(kind, case.size, scale=case.scale)
    return weights, torch.randn(case.steps, case.count, 3), truth.state(kind, case.size, case.count)


def exactly(*parts):
    return run_loop(*truth.moved(parts, torch.device("cpu"), torch.float64))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_the_layer_as_trained(name, kind, tell):
    parts = given(kind, CASES[name])
    hidden, last, _ = exactly(*parts)
    with undisturbed():
        found, end = run_fused(*truth.moved(parts, DEVICE))
    errors = [away(found, hidden), *(away(one, other) for one, other in zip(end, last, strict=True))]
    tell("largest error", max(errors))
    assert max(errors) <= CASES[name].most, errors


@pytest.mark.parametrize("kind", KINDS)
def test_the_layer_as_trained_in_float64(kind, tell):
    parts = given(kind, CASES["odd sizes"])
    with undisturbed():
        found, _ = run_fused(*truth.moved(parts, DEVICE, torch.float64))
    tell("largest error", away(found, exactly(*parts)[0]))
    assert away(found, exactly(*parts)[0]) <= 1e-12


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_what_tf32_would_have_cost(kind, tell):
    """No demand, but a sign that the others could fail: the same op as torch has it, without full precision."""
    parts = given(kind, CASES["many cells"])
    with torch.no_grad():
        found, _ = run_fused(*truth.moved(parts, DEVICE))
    tell("largest error with the training's own switches", seen(away(found, exactly(*parts)[0])))


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
def test_a_sequence_that_is_nan_spoils_no_other(kind):
    weights, inputs, start = given(kind, CASES["128 cells"])
    parts = there((inputs, start))
    with undisturbed():
        sound, _ = run_fused(truth.moved(weights, DEVICE), *parts)
        parts[0][3, 5] = math.nan
        found, _ = run_fused(truth.moved(weights, DEVICE), *parts)
    others = [k for k in range(inputs.shape[1]) if k != 5]
    assert found[3:, 5].isnan().all()
    torch.testing.assert_close(found[:, others], sound[:, others], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_follow_each_other_in_one_buffer(kind):
    """The next layer's weights are laid out where the last one's were, which the device may still be reading."""
    layers = [given(kind, CASES["128 cells"]) for _ in range(6)]
    sent = [truth.moved(parts, DEVICE) for parts in layers]
    with undisturbed():
        found = [run_fused(*parts)[0] for parts in sent]
    for hidden, parts in zip(found, layers, strict=True):
        assert away(hidden, exactly(*parts)[0]) <= 2e-5
    release_buffers()


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_back_through_the_layer(kind, tell):
    """The same scan in float64 on the host is held to autograd elsewhere."""
    weights, inputs, start = given(kind, Case(sized(128, 6), 48, 5))
    direct = torch.randn(48, 3, 5, sized(128, 6))
    end = tuple(torch.randn(3, 5, sized(128, 6)) for _ in start)

    def back(parts):
        weights, inputs, start, direct, end = parts
        hidden = run_fused(weights, inputs, start)[0]
        return reverse(weights, inputs, hidden, start, direct, end)

    with undisturbed():
        found = back(truth.moved((weights, inputs, start, direct, end), DEVICE))
        exact = back(truth.moved((weights, inputs, start, direct, end), torch.device("cpu"), torch.float64))
    pairs = [(found.total, exact.total), (found.inputs, exact.inputs), *zip(found.start, exact.start, strict=True)]
    tell("largest error", max(away(one, other) for one, other in pairs))
    assert max(away(one, other) for one, other in pairs) <= 5e-5


@pytest.mark.parametrize("kind", KINDS)
def test_gates(kind, tell):
    weights, inputs, start = given(kind, CASES["128 cells"])
    hidden, _, traces = exactly(weights, inputs, start)
    with undisturbed():
        parts = truth.moved((weights, inputs, hidden.float(), start[0]), DEVICE)
        found = gate_values(*parts)
    names = {"lstm": ("input", "forget", "candidate", "output"), "gru": ("reset", "update", "candidate")}.get(kind)
    errors = [away(found[:, :, k], traces[name]) for k, name in enumerate(names or ("candidate",))]
    tell("largest error", max(errors))
    assert max(errors) <= 2e-5


def test_the_device_computes_it_with_cudnn():
    from lstm_monitor.engines import fused

    assert DRY or fused._for_cudnn(torch.zeros(1, device=DEVICE))
