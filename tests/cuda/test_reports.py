"""`characterize` and the sensitivities on the device against the same on the host."""

import pytest
import torch

import lstm_monitor as lm
from tests.cuda import models
from tests.cuda.place import DEVICE, MARKS, sized
from tests.cuda.reports import distance, ranks_agree

pytestmark = MARKS
APART = 0.005
"""Share of values that may differ: times and ratios of cells at the edge of what defines them."""


def both(make, tell, held_out=None, **options):
    """The reports of the host and of the device, which have to agree."""
    host, device = models.pair(make)
    data = models.sequences() if held_out is None else held_out
    settings = {"horizon": sized(64, 16)} | options
    expected, found = lm.characterize(host, data, **settings), lm.characterize(device, data, **settings)
    far = distance(found, expected)
    far.tell(tell)
    tell("rank correlation", f"{ranks_agree(found, expected):.4f}")
    assert all(item.values.device.type == "cpu" for layer in found.layers for item in layer.metrics.items)
    assert far.largest <= 1e-5
    assert far.apart <= APART, far
    assert ranks_agree(found, expected) >= 0.999
    return expected, found


@pytest.mark.parametrize("make", models.MAKES)
def test_a_report(make, tell):
    both(make, tell)


def test_a_report_without_data(tell):
    host, device = models.pair("LSTM")
    expected, found = (lm.characterize(network, horizon=sized(64, 16)) for network in (host, device))
    far = distance(found, expected)
    far.tell(tell)
    assert far.apart <= APART


def test_a_report_that_chooses_its_horizon(tell):
    both("GRU", tell, horizon=None)


@pytest.mark.parametrize("make", ["LSTM", "GRU, two layers, both directions"])
def test_packed_sequences(make, tell):
    data = models.sequences()
    both(make, tell, (data, models.lengths_of(data)))


def test_a_mask(tell):
    data = models.sequences()
    both("LSTM, two layers", tell, data, lengths=models.lengths_of(data))


@pytest.mark.parametrize("name", ["measured", "std_x_outgoing", "step/settling_time"])
def test_other_rankings(name, tell):
    both("LSTM", tell, rank_by=name)


def test_data_that_is_on_the_device_already(tell):
    host, device = models.pair("LSTM")
    expected = lm.characterize(host, models.sequences(), horizon=16)
    found = lm.characterize(device, models.sequences().to(DEVICE), horizon=16)
    distance(found, expected).tell(tell)
    assert distance(found, expected).apart <= APART


def test_a_default_device(tell):
    """As ``torch.set_default_device("cuda")`` has it: what is made without a device is made there."""
    host, device = models.pair("LSTM, two layers")
    data = models.sequences()
    expected = lm.characterize(host, data, horizon=16)
    torch.set_default_device(DEVICE)
    try:
        found = lm.characterize(device, data, horizon=16)
        again = lm.characterize(host, data, horizon=16)
    finally:
        torch.set_default_device(None)
    distance(found, expected).tell(tell)
    assert distance(found, expected).apart <= APART
    assert distance(again, expected).apart == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_models_in_other_types(dtype, tell):
    """Beside float64 weights of the same values: what half precision costs is in the network's own run, not in ours."""
    host, device = models.pair("LSTM")
    device, host = device.to(dtype), host.to(dtype).double()
    data = models.sequences().to(dtype)
    expected = lm.characterize(host, data.double(), horizon=sized(64, 16))
    found = lm.characterize(device, data, horizon=sized(64, 16))
    distance(found, expected).tell(tell)
    tell("rank correlation", f"{ranks_agree(found, expected):.4f}")
    half = dtype != torch.float64
    assert distance(found, expected).apart <= (0.02 if half else 0.002)
    assert ranks_agree(found, expected) >= (0.98 if half else 0.9999)


@pytest.mark.parametrize("make", models.MAKES)
def test_sensitivities(make, tell):
    host, device = models.pair(make)
    data = models.sequences()

    def loss(network, x):
        return network(x).square().mean(1)

    for name, score in {
        "output": lambda network: lm.output_sensitivity(network, data),
        "Taylor": lambda network: lm.taylor(network, data, loss=loss),
        "first order": lambda network: lm.first_order(network, data, loss=loss),
    }.items():
        expected, found = score(host), score(device)
        assert found.keys() == expected.keys()
        error = max(_beside(found[key], expected[key]) for key in found)
        tell(name, error)
        assert error <= 1e-3, name


def _beside(one, other):
    """The largest difference beside the largest value."""
    return ((one.cpu() - other).abs().max() / other.abs().max().clamp(min=1e-12)).item()
