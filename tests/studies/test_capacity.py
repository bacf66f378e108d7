"""A capacity study against naive measurements of the same trainings, known cases, and everything that may fail."""

import math
import random
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lstm_monitor.report.canvas import as_pixels
from lstm_monitor.report.sinks import MemorySink
from lstm_monitor.studies.capacity.advice import advise
from lstm_monitor.studies.capacity.records import components_for
from lstm_monitor.studies.capacity.result import CapacityStudy
from lstm_monitor.studies.capacity.study import capacity_study
from tests.helpers.trainings import differences, random_states

SIZES, EPOCHS, HORIZON = [4, 24], 10, 16


class Network(nn.Module):
    def __init__(self, cells: int, features: int = 8, outputs: int = 10, **options: Any) -> None:
        super().__init__()
        self.rnn = nn.LSTM(features, cells, batch_first=True, **options)
        self.head = nn.Linear(cells * (1 + self.rnn.bidirectional), outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Handwritten digits, a row a step."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(images, dtype=torch.float32).view(-1, 8, 8) / 8 - 1
    return x[order], torch.tensor(labels)[order]


TRAINING, HELD_OUT = slice(600), slice(600, 700)


def fit(model: nn.Module, epochs: int = EPOCHS) -> None:
    """Shuffles with the global generator, as most trainings do."""
    x, y = (part[TRAINING] for part in digits())
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()


def accuracy(model: nn.Module) -> float:
    assert not model.training
    assert not torch.is_grad_enabled()
    x, y = (part[HELD_OUT] for part in digits())
    return float((model(x).argmax(-1) == y).float().mean())


def held_out() -> Tensor:
    return digits()[0][HELD_OUT]


def untrained(sizes: list[int] = SIZES, train: Any = lambda model: None, build: Any = Network, **options: Any) -> Any:
    """A study without any real training, in a moment."""
    return capacity_study(build, train, sizes, **{"held_out": held_out()[:20], "horizon": HORIZON} | options)


@pytest.fixture(scope="module")
def trained() -> tuple[CapacityStudy, dict[int, nn.Module]]:
    """A real study, with the networks as they were at the end of their trainings."""
    models: dict[int, nn.Module] = {}

    def train(model: nn.Module) -> None:
        fit(model)
        models[model.rnn.hidden_size] = model

    study = capacity_study(Network, train, SIZES, held_out=held_out(), evaluate=accuracy, horizon=HORIZON)
    return study, models


# --- what is measured ------------------------------------------------------------------------------------------------


def test_capacity_shows_in_components_effects_and_score(trained):
    small, large = (group[0] for group in (trained[0][size] for size in SIZES))
    assert large.score > small.score > 0.5
    assert small.layers[0].components_share > large.layers[0].components_share + 0.1
    assert small.layers[0].mean_effect > 3 * large.layers[0].mean_effect
    assert trained[0].notes == ()


def test_the_training_is_the_users_own_with_seed_0(trained):
    study, models = trained
    for size in SIZES:
        torch.manual_seed(0)
        again = Network(size)
        fit(again)
        assert differences(again.state_dict(), models[size].state_dict()) == []
        assert study[size][0].score == accuracy_of(again)
        assert study[size][0].parameters == sum(p.numel() for p in again.parameters())
        assert models[size].training  # as the training left it


@torch.no_grad()
def accuracy_of(model: nn.Module) -> float:
    return accuracy(model.eval())


@torch.no_grad()
def test_components_are_those_of_numpys_svd(trained):
    study, models = trained
    for size in SIZES:
        states = models[size].rnn(held_out())[0].reshape(-1, size).double().numpy()
        squares = np.linalg.svd(states - states.mean(0), compute_uv=False) ** 2
        expected = int(np.searchsorted(np.cumsum(squares) / squares.sum(), 0.95)) + 1
        assert study[size][0].layers[0].components == expected


@torch.no_grad()
def test_effects_are_those_of_edited_weights(trained):
    study, models = trained
    for size in SIZES:
        model, x = models[size], held_out()
        intact = model(x).double()
        weights = [getattr(model.rnn, f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        saved, effects = [w.clone() for w in weights], []
        for cell in range(size):
            [w[2 * size + cell].zero_() for w in weights]  # the candidate's row
            effects.append(float((model(x).double() - intact).square().mean()))
            [w.copy_(before) for w, before in zip(weights, saved, strict=True)]
        variance = float(intact.var(0, correction=0).mean())
        assert study[size][0].variance == pytest.approx(variance)
        np.testing.assert_allclose(study[size][0].layers[0].effects.numpy(), np.array(effects) / variance, rtol=1e-4)


def test_harmless_cells_are_counted(trained):
    layer = trained[0][24][0].layers[0]
    middle = float(layer.effects.median())
    assert layer.harmless(0) == 0
    assert layer.harmless(1e9) == 1
    assert layer.harmless(middle) == pytest.approx(11 / 24)  # the median is the 12th of 24, and is not under itself


def test_planted_idle_cells_are_found():
    def build(size: int) -> nn.Module:
        model = Network(size)
        with torch.no_grad():
            model.head.weight[:, size // 2 :] = 0
            model.rnn.weight_hh_l0[:, size // 2 :] = 0
        return model

    study = untrained([8, 16], build=build)
    for size in (8, 16):
        layer = study[size][0].layers[0]
        assert layer.harmless(1e-9) == 0.5
        assert torch.equal(layer.effects == 0, torch.arange(size) >= size // 2)


def test_several_batches_lengths_and_a_tuple_give_the_same_as_one():
    x = torch.randn(20, 8, 8)
    whole = untrained([6], held_out=x, build=lambda n: Network(n, bidirectional=True))
    parts = untrained([6], held_out=[(x[:8],), (x[8:],)], build=lambda n: Network(n, bidirectional=True))
    assert len(whole.trained[0].layers) == 2
    for one, other in zip(whole.trained[0].layers, parts.trained[0].layers, strict=True):
        torch.testing.assert_close(one.effects * whole.trained[0].variance, other.effects * parts.trained[0].variance)
        assert one.components == other.components


def test_only_the_steps_that_count_make_components():
    x = torch.randn(20, 8, 1) * torch.randn(8)
    x[:, 3:] = 5 * torch.randn(20, 5, 8)  # what is padded moves in every direction
    study, whole = untrained([6], held_out=x, lengths=torch.full((20,), 3)), untrained([6], held_out=x)
    torch.manual_seed(0)
    states = Network(6).rnn(x[:, :3])[0].flatten(0, 1)
    assert study.trained[0].layers[0].components == components_for(states)
    assert study.trained[0].layers[0].components < whole.trained[0].layers[0].components


# --- components ------------------------------------------------------------------------------------------------------


def test_states_of_rank_one_have_one_component():
    assert components_for(torch.randn(200, 1) @ torch.randn(1, 16) + torch.randn(16)) == 1


@pytest.mark.parametrize("cells", [1, 2, 7, 20, 40])
def test_equal_independent_cells_need_95_percent_of_them(cells):
    basis, _ = torch.linalg.qr(
        torch.randn(200, cells + 1, dtype=torch.float64) + torch.ones(200, 1) * torch.eye(1, cells + 1)
    )
    states = basis - basis.mean(0)
    states, _ = torch.linalg.qr(states[:, 1:])  # centred, orthonormal
    assert components_for(states) == math.ceil(0.95 * cells - 1e-9)


def test_components_of_what_does_not_vary_or_is_not_finite_are_not_defined():
    assert math.isnan(components_for(torch.ones(50, 4)))
    assert math.isnan(components_for(torch.full((50, 4), torch.inf)))
    assert components_for(torch.randn(1, 4).expand(2, 4) * torch.tensor([[1.0], [-1.0]])) == 1


# --- the advice ------------------------------------------------------------------------------------------------------

CURVE = {8: [0.90], 16: [0.95], 32: [0.975], 64: [0.98], 128: [0.981]}


def test_the_smallest_size_that_is_as_good_as_the_best_is_advised():
    advice = advise(CURVE, "higher")
    assert (advice.size, advice.best) == (32, 128)
    assert advice.margin == pytest.approx(0.00981)
    assert "0.981 at 128, 0.975 at 32, 0.95 at 16" in advice.reason
    assert "One training a size" in advice.reason


@pytest.mark.parametrize(("tolerance", "size"), [(0, 128), (0.0011, 64), (0.005, 64), (0.04, 16), (1, 8)])
def test_a_tolerance_is_obeyed(tolerance, size):
    assert advise(CURVE, "higher", tolerance).size == size
    losses = {size: [1 - value for value in values] for size, values in CURVE.items()}
    assert advise(losses, "lower", tolerance + 1e-9).size == size


def test_losses_are_compared_by_their_range():
    assert advise({8: [0.45], 16: [0.25], 32: [0.15], 64: [0.12], 128: [0.11]}, "lower").size == 64


def test_the_ends_say_to_try_beyond_them():
    largest = advise({8: [0.5], 16: [0.6], 32: [0.7]}, "higher")
    assert largest.size == 32
    assert "Try larger sizes" in largest.reason
    smallest = advise({8: [0.7], 16: [0.701], 32: [0.702]}, "higher")
    assert smallest.size == 8
    assert "try smaller sizes" in smallest.reason
    best = advise({8: [0.7], 16: [0.701], 32: [0.5]}, "higher", 0)
    assert best.size == 16
    assert "Size 16 has the best score" in best.reason


def test_seeds_widen_the_margin_and_chance_is_named():
    noisy = {8: [0.6, 0.9, 0.7], 16: [0.7, 0.62, 0.88], 32: [0.75, 0.9, 0.68]}
    advice = advise(noisy, "higher")
    spread = np.std(noisy[32], ddof=1)
    assert advice.best == 32
    assert advice.margin == pytest.approx(spread / math.sqrt(3))
    assert "no size can be told from another" in advice.reason
    clear = {8: [0.6, 0.61], 16: [0.8, 0.81], 32: [0.95, 0.96]}
    assert "no size can be told" not in advise(clear, "higher").reason
    assert "differ by 0.0071" in advise(clear, "higher").reason
    equal = {8: [0.6, 0.6], 16: [0.6, 0.6]}
    assert "no size can be told from another" in advise(equal, "higher").reason


def test_chance_is_scipys_analysis_of_variance():
    from scipy.stats import f_oneway

    from lstm_monitor.studies.capacity.advice import _by_chance

    groups = [np.random.randn(n) + shift for n, shift in ((3, 0), (4, 0.5), (3, 1))]
    assert _by_chance(groups) == pytest.approx(f_oneway(*groups).pvalue)


def test_missing_scores_are_left_out():
    assert advise({8: [math.nan], 16: [0.7, math.nan], 32: [0.9]}, "higher").size == 32
    alone = advise({8: [math.nan], 16: [0.7]}, "higher")
    assert alone.size == 16
    assert "nothing to compare" in alone.reason
    none = advise({8: [math.nan]}, "higher")
    assert none.size is None
    assert "No size has a score" in none.reason


def test_a_loss_taken_for_a_score_is_noticed():
    assert "give better='lower'" in advise({8: [0.5], 16: [0.4], 32: [0.3]}, "higher").reason
    assert "give better" not in advise({8: [0.5], 16: [0.4], 32: [0.45]}, "higher").reason


# --- what a study leaves behind --------------------------------------------------------------------------------------


def test_it_is_the_same_twice_and_puts_the_random_states_back():
    before = random_states()

    def train(model: nn.Module) -> float:
        fit(model, 1)
        return random.random() + np.random.rand()

    one, other = untrained(train=train), untrained(train=train)
    assert differences(before, random_states()) == []
    assert [item.score for item in one.trained] == [item.score for item in other.trained]
    assert one.trained[0].score == one.trained[1].score  # every size starts from the same seed
    for a, b in zip(one.trained, other.trained, strict=True):
        assert torch.equal(a.layers[0].effects, b.layers[0].effects)


def test_seeds_are_repeats():
    study = untrained(seeds=2, train=lambda model: float(model.head.weight.sum()))
    assert [(item.size, item.seed) for item in study.trained] == [(4, 0), (4, 1), (24, 0), (24, 1)]
    torch.manual_seed(1)
    assert study[4][1].score == float(Network(4).head.weight.sum())
    assert [item.seed for item in untrained([4], seeds=[7, 3]).trained] == [7, 3]
    assert "2 trainings each" in repr(study)


def test_what_train_returns_is_the_score_or_the_network():
    assert untrained([4], train=lambda model: torch.tensor(0.5)).trained[0].score == 0.5
    assert untrained([4], train=lambda model: np.float32(0.5)).trained[0].score == 0.5
    assert untrained([4], train=lambda model: 0.5, evaluate=lambda model: 0.75).trained[0].score == 0.75
    other = untrained([4], train=lambda model: Network(6))
    assert other.trained[0].layers[0].hidden_size == 6
    odd = untrained([4], train=lambda model: {"loss": 1})
    assert odd.notes == ("size 4: train returned dict, neither a number nor a module",)
    assert odd.recommendation is None


def test_progress_is_told():
    lines: list[str] = []
    untrained(train=lambda model: 0.5, progress=lines.append)
    assert [line.split(":")[0] for line in lines] == ["size 4", "size 24"]
    assert "score 0.5" in lines[0]


# --- sinks -----------------------------------------------------------------------------------------------------------


class Closing(MemorySink):
    """A sink that knows whether it was closed."""

    closed = 0

    def close(self) -> None:
        self.closed += 1


def test_every_size_has_sinks_of_its_own_with_a_report_a_seed():
    sinks = {size: Closing() for size in SIZES}
    untrained(seeds=2, sinks=lambda size: [sinks[size]])
    for size, sink in sinks.items():
        assert [report.step for report in sink.reports] == [0, 1]
        assert {report.layers[0].hidden_size for report in sink.reports} == {size}
        assert sink.closed == 1


def test_tensorboard_holds_one_run_a_size(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from lstm_monitor.integrations.tensorboard_sink.sink import TensorBoardSink

    study = untrained(sinks=lambda size: [TensorBoardSink(tmp_path / str(size), pictures_every=0)])
    assert study.notes == ()
    for size in SIZES:
        events = EventAccumulator(str(tmp_path / str(size))).Reload()
        assert "lstm_monitor/rnn.l0/activity/std/p50" in events.Tags()["scalars"]


# --- what fails ------------------------------------------------------------------------------------------------------


def test_a_size_that_fails_does_not_lose_the_others():
    def train(model: nn.Module) -> float:
        if model.rnn.hidden_size == 5:
            raise RuntimeError("out of memory")
        if model.rnn.hidden_size == 6:
            with torch.no_grad():
                model.rnn.weight_hh_l0.fill_(math.nan)
            return math.nan
        return model.rnn.hidden_size / 10

    study = untrained([4, 5, 6, 7], train=train)
    assert "size 5: training failed: RuntimeError: out of memory" in study.notes
    assert "size 6: the score is nan" in study.notes
    assert any(note.startswith("size 6: characterizing failed: ValueError: rnn.l0: ") for note in study.notes)
    table = study.to_pandas().set_index("size")
    assert table.loc[[5, 6], ["score", "components", "harmless_share", "std_p50"]].isna().all(axis=None)
    assert table.loc[[4, 7], ["score", "components", "harmless_share", "std_p50"]].notna().all(axis=None)
    assert list(table.layer) == ["rnn.l0"] * 4
    assert study.recommendation == 7
    assert "note: size 5" in repr(study)
    check_picture(study)


def test_an_evaluate_that_fails_later_is_noted():
    calls: list[int] = []

    def evaluate(model: nn.Module) -> float:
        calls.append(model.rnn.hidden_size)
        if len(calls) > 2:
            raise ValueError("no data left")
        return 0.5

    study = untrained(evaluate=evaluate)
    assert calls == [4, 4, 24]  # tried out once on the first, untrained network
    assert study.notes == ("size 24: evaluate failed: ValueError: no data left",)
    assert study[24][0].layers


def test_sinks_that_fail_are_noted():
    class Broken(Closing):
        def write(self, report: object) -> None:
            raise OSError("disk full")

    sink = Broken()
    study = untrained([4], sinks=lambda size: [sink])
    assert study.notes == ("size 4: writing its report failed: OSError: disk full",)
    assert sink.closed == 1

    def none(size: int) -> list[Closing]:
        raise OSError("read only")

    assert untrained([4], sinks=none).notes == ("size 4: making its sinks failed: OSError: read only",)


def test_an_interrupt_ends_the_study_and_leaves_nothing_behind():
    before, sink = random_states(), Closing()

    def train(model: nn.Module) -> None:
        torch.rand(3)
        if model.rnn.hidden_size == 24:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        untrained(train=train, sinks=lambda size: [sink])
    assert sink.closed == 2
    assert differences(before, random_states()) == []


def test_a_study_of_which_nothing_is_known_is_an_error():
    def train(model: nn.Module) -> None:
        raise RuntimeError("no such device")

    with pytest.raises(RuntimeError, match="nothing is known of any size: size 4: training failed.*no such device"):
        untrained(train=train)


def test_mistakes_show_before_the_first_training():
    def train(model: nn.Module) -> None:
        pytest.fail("nothing may be trained")

    def wrong_late(size: int) -> nn.Module:
        return Network(min(size, 8))

    def refuse(model: nn.Module) -> float:
        raise ValueError("no loader")

    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"sizes": []}, ValueError, "sizes=[] must be ascending integers"),
        ({"sizes": [8, 4]}, ValueError, "sizes=[8, 4] must be ascending"),
        ({"sizes": [4, 4]}, ValueError, "ascending"),
        ({"sizes": [0, 4]}, ValueError, "at least 1"),
        ({"sizes": [4, 8.0]}, ValueError, "integers"),
        ({"seeds": 0}, ValueError, "seeds=0 must be how many"),
        ({"seeds": [1, 1]}, ValueError, "different seeds"),
        ({"seeds": [-1]}, ValueError, "seeds=[-1]"),
        ({"seeds": True}, ValueError, "seeds=True"),
        ({"better": "up"}, ValueError, "better='up' is not known"),
        ({"tolerance": -1}, ValueError, "tolerance=-1 must be 0 or more"),
        ({"tolerance": math.nan}, ValueError, "tolerance=nan"),
        ({"harmless": 0}, ValueError, "harmless=0 must be above 0"),
        ({"horizon": 3}, ValueError, "horizon=3 is too short"),
        ({"held_out": None}, ValueError, "held_out=None"),
        ({"held_out": torch.randn(4, 8, 5)}, ValueError, "held_out: the model could not be run"),
        ({"layers": "lstm.*"}, ValueError, "layers='lstm.*' matches no layer"),
        ({"build": lambda size: size}, TypeError, "build(4) returned int; it must return a torch.nn.Module"),
        ({"build": lambda size: nn.Linear(8, size)}, ValueError, "has no recurrent layer"),
        ({"build": wrong_late}, ValueError, "build(24) returned a network in which no recurrent layer has 24 cells"),
        ({"evaluate": refuse}, ValueError, "no loader"),
        ({"evaluate": lambda model: "good"}, TypeError, "evaluate returned str; it must return one number"),
        ({"evaluate": lambda model: torch.ones(3)}, TypeError, "evaluate returned Tensor"),
    ]
    before = random_states()
    for options, kind, words in cases:
        with pytest.raises(kind) as caught:
            untrained(**{"train": train} | options)
        assert words in str(caught.value)
    assert differences(before, random_states()) == []


# --- how it looks ----------------------------------------------------------------------------------------------------


def test_the_table_has_a_row_a_size_and_layer(trained):
    table = trained[0].to_pandas()
    assert list(table["size"]) == SIZES
    assert list(table.columns[:12]) == [
        "size", "seed", "layer", "score", "seconds", "parameters", "cells", "components", "components_share",
        "harmless_share", "mean_effect", "never_settled",
    ]  # fmt: skip
    layer = trained[0][24][0].layers[0]
    assert table.mean_effect[1] == pytest.approx(float(layer.effects.mean()))
    stds = layer.report.metrics["activity/std"].cells.double().numpy()
    np.testing.assert_allclose(
        table.loc[1, ["std_p10", "std_p50", "std_p90"]].astype(float), np.quantile(stds, (0.1, 0.5, 0.9))
    )
    two = untrained(build=lambda n: Network(n, num_layers=2)).to_pandas()
    assert list(two.layer) == ["rnn.l0", "rnn.l1"] * 2


def test_it_reads_well(trained):
    study = trained[0]
    assert study.recommendation == 24
    assert "The largest size is still the best" in study.reason
    assert "components hold 95% of the variance" in study.reason
    words = repr(study)
    assert words.splitlines()[1].startswith("recommended: 24 cells.")
    assert max(map(len, words.splitlines())) <= 120
    assert "rnn.l0, from 4 to 24 cells:" in study.in_words()
    page = study._repr_html_()
    assert "data:image/png" in page
    assert "recommended: 24 cells" in page
    with pytest.raises(KeyError, match="no size 5; there are 4, 24"):
        study[5]


def check_picture(study: CapacityStudy) -> None:
    """It draws, and every word of it lies within the picture."""
    figure = study.plot()
    height, width, _ = as_pixels(figure).shape
    for axes in figure.axes:
        for text in axes.texts:
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height, text.get_text()  # noqa: PT018


def _studies() -> Iterator[tuple[str, CapacityStudy]]:
    score = {"train": lambda model: 1 / model.rnn.hidden_size, "better": "lower"}
    yield "no score", untrained()
    yield "one size", untrained([4], train=lambda model: 0.0)
    yield "one cell", untrained([1, 2], **score)
    yield "losses and seeds", untrained([4, 8, 16], seeds=2, **score)
    yield "two layers", untrained([4, 8], build=lambda n: Network(n, num_layers=2), **score)
    yield "eight layers", untrained([4, 8], build=lambda n: Network(n, num_layers=4, bidirectional=True), **score)
    yield "many sizes", untrained([*range(4, 20), 64], **score)
    long = "a_recurrent_encoder_with_a_very_long_name_indeed"

    class Long(nn.Module):
        def __init__(self, cells: int) -> None:
            super().__init__()
            self.add_module(long, Network(cells, num_layers=2))
            self.rnn = nn.Identity()
            self.rnn.hidden_size = cells

        def forward(self, x: Tensor) -> Tensor:
            return getattr(self, long)(x)

    yield "long names", untrained([4, 130], build=Long, held_out=torch.randn(1, 8, 8), layers="*l0", **score)
    yield "long names twice", untrained([4, 8], build=Long, **score)

    class Mute(Network):
        def forward(self, x: Tensor) -> Tensor:
            return 0 * super().forward(x)

    yield "no output", untrained([4, 8], build=Mute, **score)


@pytest.mark.thorough
def test_pictures_of_all_kinds_draw_and_hold_their_words():
    for name, study in _studies():
        check_picture(study)
        assert study.in_words(), name
        assert repr(study), name


def test_a_picture_of_a_real_study_draws(trained):
    check_picture(trained[0])
    assert all(a < b for a, b in pairwise(trained[0].sizes))
