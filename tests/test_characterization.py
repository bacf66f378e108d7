"""characterize(): from a module to a report, without a trainer."""

import pytest
import torch
from torch import nn

import lstm_monitor as lm
from lstm_monitor.responses.probe_design import design_probe


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 12, batch_first=True)
        self.head = nn.Linear(12, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][:, -1])


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(8, 40, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def report(x: torch.Tensor) -> lm.Report:
    torch.manual_seed(0)
    return lm.characterize(Net(), held_out=x)


def test_one_row_a_cell(report: lm.Report) -> None:
    frame = report.to_pandas()
    assert len(frame) == 12
    assert {"layer", "cell", "rank", "score", "step/settling_time", "activity/std"} <= set(frame.columns)
    assert sorted(frame["rank"]) == list(range(12))
    assert frame.sort_values("rank")["score"].is_monotonic_decreasing


@pytest.mark.parametrize("rank_by", ["auto", "std_x_outgoing"])
def test_a_default_device_is_none_of_its_business(x: torch.Tensor, rank_by: str) -> None:
    """What it makes of its own is on the host or where the layer is: on the default device it would be nowhere."""
    net = Net()
    for held_out in (x, None):
        expected = lm.characterize(net, held_out, horizon=16, rank_by=rank_by).to_pandas()
        with torch.device("meta"):
            found = lm.characterize(net, held_out, horizon=16, rank_by=rank_by)
            assert found.to_pandas().equals(expected)


def test_it_reads_well(report: lm.Report) -> None:
    text = repr(report)
    assert "rnn.l0: lstm, 3 features -> 12 cells" in text
    assert "ranked by centred output sensitivity on held-out data:" in text
    assert report.in_words().count("most responsive") == 3
    html = report._repr_html_()
    assert "data:image/png;base64," in html
    assert "rnn.l0" in html


def test_layers_are_found_by_name(report: lm.Report) -> None:
    assert report["rnn.l0"].hidden_size == 12
    with pytest.raises(KeyError, match=r"no layer 'rnn\.l1'\. Did you mean 'rnn\.l0'"):
        report["rnn.l1"]
    with pytest.raises(KeyError, match="no metric 'step/peak_respons' of rnn.l0. Did you mean 'step/peak_response'"):
        report["rnn.l0"].metrics["step/peak_respons"]


def test_nothing_of_the_model_or_the_random_state_changes(x: torch.Tensor) -> None:
    net = Net()
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    lm.characterize(net, held_out=x)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert net.training


def test_twice_gives_the_same(x: torch.Tensor) -> None:
    net = Net()
    one, other = lm.characterize(net, x).to_pandas(), lm.characterize(net, x).to_pandas()
    assert one.equals(other)


def memory_of(steps: float) -> nn.Module:
    """A tanh RNN of one cell whose linear time constant is `steps`."""
    rnn = nn.RNN(1, 1, batch_first=True)
    with torch.no_grad():
        for parameter in rnn.parameters():
            parameter.zero_()
        rnn.weight_ih_l0.fill_(0.05 / steps)  # small enough to stay linear
        rnn.weight_hh_l0.fill_(float(torch.exp(torch.tensor(-1 / steps))))
    return rnn


@pytest.mark.parametrize(("steps", "horizon"), [(3, 64), (60, 256), (3000, 1024)])
def test_the_horizon_doubles_until_the_cells_settle(steps: float, horizon: int) -> None:
    (snap,) = lm.snapshot(memory_of(steps))
    assert design_probe(snap, lm.Thresholds()).horizon == horizon


def test_the_horizon_starts_at_the_tasks_length(x: torch.Tensor) -> None:
    (snap,) = lm.snapshot(memory_of(3), torch.randn(4, 100, 1))
    assert design_probe(snap, lm.Thresholds()).horizon == 100
    assert lm.characterize(Net(), x, horizon=33).layers[0].horizon == 33


def test_a_slow_cell_is_counted_and_its_time_undefined() -> None:
    layer = lm.characterize(memory_of(3000)).layers[0]
    assert dict((name, count) for _, name, count in layer.counts()) == {"flagged": 1, "not_at_rest": 0, "silent": 0}
    assert "still drifting" in layer.metrics["step/settling_time"].why_nan(0)


def test_dead_and_silent_cells_are_counted(x: torch.Tensor) -> None:
    net = Net()
    with torch.no_grad():
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            net.rnn.get_parameter(name)[2 * 12 : 2 * 12 + 4] = 0  # no candidate, no change: four cells
    report = lm.characterize(net, x)
    counts = {name: count for _, name, count in report.layers[0].counts()}
    assert (counts["dead"], counts["silent"]) == (4, 4)
    assert "4 of 12 cells are dead" in repr(report)


def test_what_is_not_supported_is_named() -> None:
    class OddGRU(nn.GRU):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[..., :1] + self.weight_hh_l0.sum()

    report = lm.characterize(nn.ModuleDict({"odd": OddGRU(3, 4), "fine": nn.GRU(3, 4)}))
    assert [str(layer.key) for layer in report.layers] == ["fine.l0"]
    assert "odd (OddGRU): its forward is overridden" in repr(report)


def test_bad_input_is_named(x: torch.Tensor) -> None:
    net = Net()
    with pytest.raises(ValueError, match=r"rank_by='activty/std' is not known. Did you mean 'activity/std'"):
        lm.characterize(net, x, rank_by="activty/std")
    with pytest.raises(ValueError, match=r"layers='rn.l0' matches no layer. Did you mean 'rnn.l0'"):
        lm.characterize(net, x, layers="rn.l0")
    with pytest.raises(ValueError, match="horizon=4 is too short"):
        lm.characterize(net, x, horizon=4)
    with pytest.raises(ValueError, match="rnn.l0 reads 3"):
        lm.characterize(net, torch.randn(8, 40, 5))
    with pytest.raises(ValueError, match="held_out holds 1 values that are NaN"):
        lm.characterize(net, torch.where(torch.arange(40 * 3 * 8).view(8, 40, 3) == 7, torch.nan, x))
    with pytest.raises(TypeError, match="is no torch.nn.Module"):
        lm.characterize(x)
    with torch.no_grad():
        net.rnn.bias_hh_l0[3] = torch.inf
    with pytest.raises(ValueError, match="rnn.l0: 1 of 48 values of bias_hh_l0 are NaN or infinite"):
        lm.characterize(net, x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_any_float_dtype(dtype: torch.dtype) -> None:
    layer = lm.characterize(nn.GRU(2, 4, dtype=dtype)).layers[0]
    assert layer.ranking.scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.isfinite(layer.metrics["step/peak_response"].cells).all()
