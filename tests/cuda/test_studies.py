"""Removing cells on the device against the same on the host: for a moment, in a study, and for good."""

import pytest
import torch

import lstm_monitor as lm
from tests.cuda import models
from tests.cuda.place import DEVICE, MARKS, sized

pytestmark = MARKS
MAKES = ("LSTM", "GRU", "RNN, tanh", "LSTM, two layers", "GRU, two layers, both directions", "LSTM, projection")


def removed(network):
    """Every third cell of each layer."""
    return {f"{layer.key}": list(range(0, models.CELLS, 3)) for layer in lm.find_layers(network)}


def error(one, other):
    return (one.cpu().double() - other.double()).abs().max().item()


@pytest.fixture(autouse=True)
def _full_precision():
    """These run the network itself, outside of our own full precision."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("mode", ["zero", "mean"])
@pytest.mark.parametrize("make", MAKES)
def test_ablated(make, mode, tell):
    host, device = models.pair(make)
    x = models.sequences()
    outputs = []
    for network, data in ((host, x), (device, x.to(DEVICE))):
        before = {name: value.clone() for name, value in network.state_dict().items()}
        with (
            torch.no_grad(),
            lm.ablated(network, removed(network), mode=mode, **({} if mode == "zero" else {"held_out": x})),
        ):
            outputs.append(network(data))
        assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    tell("largest error", error(outputs[1], outputs[0]))
    assert error(outputs[1], outputs[0]) <= 1e-4
    with torch.no_grad():
        assert error(device(x.to(DEVICE)), outputs[0]) > 1e-3


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize("make", MAKES)
def test_prune(make, example, tell):
    """What is left computes on the device what the ablated network does on the host."""
    host, device = models.pair(make)
    x, gone = models.sequences(), removed(host)
    keep = {name: [k for k in range(models.CELLS) if k not in cells] for name, cells in gone.items()}
    smaller = lm.prune(device, keep=keep, example=x.to(DEVICE) if example else None)
    with torch.no_grad(), lm.ablated(host, gone):
        expected = host(x)
    with torch.no_grad():
        found = smaller(x.to(DEVICE))
    tell("largest error", error(found, expected))
    assert error(found, expected) <= 1e-4
    assert {parameter.device for parameter in smaller.parameters()} == {DEVICE}


@pytest.mark.parametrize("make", ["LSTM", "GRU", "LSTM, two layers"])
def test_a_study(make, tell):
    host, device = models.pair(make)
    x = models.sequences()
    options = {"rankings": ["auto", "std_x_outgoing"], "points": 4, "random_orders": 2, "seconds": None}
    expected, found = (
        lm.ablation_study(network, scored(data), held_out=x, **options)
        for network, data in ((host, x), (device, x.to(DEVICE)))
    )
    for mine, theirs in zip(found.layers, expected.layers, strict=True):
        for name in ("output", "score"):
            values, exact = getattr(mine.effects, name), getattr(theirs.effects, name)
            beside = error(values, exact) / exact.abs().max().item()
            tell(f"{mine.key} {name}", beside)
            assert values.device.type == "cpu"
            assert beside <= 1e-3
        for one, other in zip(mine.trials, theirs.trials, strict=True):
            assert error(one.least_first, other.least_first) <= 2e-2
        assert mine.intact == pytest.approx(theirs.intact, rel=1e-4)


def scored(data):
    def evaluate(network):
        return network(data).square().mean(1).detach()

    return evaluate


def test_cells_race(tell):
    host, device = models.pair("LSTM")
    x, count = models.sequences(), sized(5, 2)
    found, expected = (lm.ablation_study(net, held_out=x, top=count, seconds=None, points=3, random_orders=1)
                       for net in (device, host))  # fmt: skip
    tops = [
        set(study.layers[0].effects.output.nan_to_num(-1.0).topk(count).indices.tolist()) for study in (found, expected)
    ]
    tell("of the top on the host", f"{len(tops[0] & tops[1])} of {count}")
    assert len(tops[0] & tops[1]) >= count - 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_study_in_half_precision_edits_the_live_weights_and_puts_them_back(dtype):
    _, device = models.pair("LSTM")
    device, x = device.to(dtype), models.sequences().to(dtype)
    before = {name: value.clone() for name, value in device.state_dict().items()}
    study = lm.ablation_study(device, held_out=x, seconds=None, points=3, random_orders=1)
    assert torch.isfinite(study.layers[0].effects.output).all()
    assert all(torch.equal(before[name], value) for name, value in device.state_dict().items())
