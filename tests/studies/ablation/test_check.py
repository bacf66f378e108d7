"""The ablation check in a loop of one's own, and its arguments."""

from __future__ import annotations

import logging
import pickle
import time
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lstm_monitor as lm
from lstm_monitor.report.keys import key
from lstm_monitor.report.report import Report
from lstm_monitor.studies.ablation.bench import RANKINGS
from lstm_monitor.studies.ablation.check import AblationCheck, as_check, rankings_of

CELLS = 5
QUICK = {"rankings": ("measured",), "random_orders": 2, "points": 3}


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, CELLS, batch_first=True)
        self.head = nn.Linear(CELLS, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def quick(**options: Any) -> AblationCheck:
    return AblationCheck(**QUICK | options)


def data(seed: int = 0, count: int = 8) -> Tensor:
    return torch.randn(count, 10, 3, generator=torch.Generator().manual_seed(seed))


def train(model: nn.Module, **options: Any) -> tuple[lm.LSTMMonitor, list[Report]]:
    """Three steps with a check at each; the monitor and the reports."""
    memory = lm.MemorySink()
    defaults = {"held_out": data(), "every_n_steps": 1, "horizon": 16, "budget": None, "on_error": "raise"}
    monitor = lm.LSTMMonitor(model, **defaults | {"sinks": [memory, *options.pop("sinks", [])]} | options)
    with monitor:
        for step in range(3):
            with torch.no_grad():
                [weight.mul_(1.1) for weight in model.parameters()]
            monitor.on_train_batch_end(step)
    return monitor, memory.reports


# In a loop


def test_the_last_report_holds_the_study_and_sinks_get_it_by_itself():
    monitor, reports = train(Network(), ablation=quick())
    assert [(report.step, len(report.layers)) for report in reports] == [(0, 1), (1, 1), (2, 1), (3, 1), (3, 0)]
    assert [report.study is None for report in reports] == [True, True, True, True, False]
    assert monitor.report.study is reports[-1].study
    assert monitor.report.layers == reports[-2].layers
    assert monitor.report.study["rnn.l0"].effects.output.shape == (CELLS,)


def test_true_is_the_default_check():
    monitor, _ = train(Network(), ablation=True)
    names = [trial.ranking.name for trial in monitor.report.study["rnn.l0"].trials]
    assert names[:3] == ["output_sensitivity", "measured", "greedy"]
    assert len(names) == len(RANKINGS)
    assert monitor.report.study.score is None


def test_it_is_the_study_that_a_user_would_make():
    model = Network()

    def squared(model: nn.Module) -> Tensor:
        return model(data(4)).square().mean(1)

    monitor, _ = train(model, ablation=quick(score=squared, mode="mean"))
    from lstm_monitor.studies.ablation.study import ablation_study

    study = ablation_study(model, squared, held_out=data(), mode="mean", rankings=["measured"], random_orders=2)
    for name in ("output", "score", "output_error", "score_error"):
        found, expected = (getattr(item["rnn.l0"].effects, name) for item in (monitor.report.study, study))
        torch.testing.assert_close(found, expected)
    assert (study.score, study.intact) == (monitor.report.study.score, monitor.report.study.intact)


def test_without_held_out_data_a_score_is_enough():
    monitor, _ = train(Network(), held_out=None, ablation=quick(score=lambda model: model(data()).square().mean()))
    assert monitor.report.study.score == "score"
    assert bool(torch.isfinite(monitor.report.study["rnn.l0"].effects.score).all())


def test_its_layers_are_those_that_are_watched_unless_it_says_so():
    model = nn.Sequential(nn.LSTM(3, 4, num_layers=2, batch_first=True))
    for layers, options, expected in (("*l1", {}, ["0.l1"]), ("*l1", {"layers": "*l0"}, ["0.l0"])):
        monitor, _ = train(model, layers=layers, ablation=quick(**options))
        assert [str(layer.key) for layer in monitor.report.study.layers] == expected


def test_its_time_counts_neither_as_training_nor_as_checks(quiet_clock):
    spent = []

    def slow(model: nn.Module) -> Tensor:
        quiet_clock.wait(0.02)
        spent.append(0.02)
        return model(data()).mean()

    began = time.perf_counter()
    monitor, _ = train(Network(), ablation=quick(score=slow))
    whole = time.perf_counter() - began
    assert sum(spent) > 0.2
    assert monitor.clock.plain()["trained"] < whole - sum(spent)
    assert monitor.clock.spent < whole - sum(spent)


def test_a_failing_check_at_the_end_is_one_warning_and_the_sinks_are_closed():
    class Closing(lm.MemorySink):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    def fail(model: nn.Module) -> float:
        raise RuntimeError("planted")

    sink = Closing()
    with pytest.warns(lm.MonitorWarning, match="The ablation check failed: RuntimeError: planted"):
        monitor, reports = train(Network(), ablation=quick(score=fail), on_error="warn", sinks=[sink])
    assert (len(reports), sink.closed) == (4, 1)
    assert monitor.report.study is None
    assert monitor.report.layers


def test_a_sink_that_fails_keeps_the_study_from_no_report():
    class Failing(lm.MemorySink):
        def write(self, report: Report) -> None:
            if report.study is not None:
                raise RuntimeError("planted")

    with pytest.warns(lm.MonitorWarning, match="planted"):
        monitor, reports = train(Network(), ablation=quick(), on_error="warn", sinks=[Failing()])
    assert reports[-1].study is monitor.report.study is not None


def test_after_an_exception_none_is_made():
    def never(model: nn.Module) -> float:
        raise AssertionError

    monitor = lm.LSTMMonitor(Network(), data(), ablation=quick(score=never), horizon=16, on_error="raise")
    with pytest.raises(KeyError), monitor:
        raise KeyError
    assert monitor.report.study is None


def test_switched_off_none_is_made(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LSTM_MONITOR", "off")
    monitor, reports = train(Network(), ablation=quick())
    assert (monitor.report, reports) == (None, [])


def test_the_sentences_are_logged(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "lstm_monitor"):
        monitor, _ = train(Network(), ablation=quick())
    sentence = monitor.report.in_words().split("\n\n")[-1]
    assert sentence.startswith("rnn.l0: ")
    assert f"lstm_monitor: {sentence}" in [record.getMessage() for record in caplog.records]


# In a report


def test_a_report_of_a_study_has_its_own_keys_and_no_others():
    monitor, reports = train(Network(), ablation=quick(score=lambda model: model(data()).square().mean(1)))
    last, study = reports[-2:]
    assert study.scalars().keys() & last.scalars().keys() == set()
    assert monitor.report.scalars().keys() == study.scalars().keys() | last.scalars().keys()
    [layer] = study.study.layers
    scalars = study.scalars()
    assert scalars[key("rnn.l0", "ablation", "gap", "used")] == layer.trials[0].gap
    assert scalars[key("rnn.l0", "ablation", "rho_output", "used")] == layer.trials[0].output.rho
    share = float((layer.effects.output < 1e-3 * layer.variance).double().mean())
    assert scalars[key("rnn.l0", "ablation", "harmless", "share")] == share
    values = study.histograms()
    torch.testing.assert_close(
        torch.as_tensor(values[key("rnn.l0", "ablation", "output_change", "cells_log10")]),
        layer.effects.output.clamp(min=1e-12).log10().sort().values,
    )
    torch.testing.assert_close(
        torch.as_tensor(values[key("rnn.l0", "ablation", "score_change", "cells")]), layer.effects.score.sort().values
    )
    assert set(study.pictures()) == {key("rnn.l0", "pictures", "ablation")}
    assert set(monitor.report.pictures()) == set(study.pictures()) | set(last.pictures())


def test_without_a_score_there_is_no_distribution_of_it():
    _, reports = train(Network(), ablation=quick())
    assert set(reports[-1].histograms()) == {key("rnn.l0", "ablation", "output_change", "cells_log10")}


# Arguments


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "one"}, "mode='one'"),
        ({"rankings": ["mesured"]}, "Did you mean 'measured'"),
        ({"rankings": "measured"}, r"give a list, such as \['measured'\]"),
        ({"sequences": 0}, "sequences=0"),
        ({"sequences": 2.5}, "sequences=2.5"),
        ({"sequences": True}, "sequences=True"),
        ({"seconds": 0}, "seconds=0"),
        ({"random_orders": -1}, "random_orders=-1"),
        ({"points": 1}, "points=1"),
        ({"better": "more"}, "better='more'"),
    ],
)
def test_bad_values_are_told_at_once(options: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        AblationCheck(**options)


@pytest.mark.parametrize("options", [{"score": 3}, {"output": "logits"}])
def test_bad_types_are_told_at_once(options: dict[str, Any]):
    with pytest.raises(TypeError, match="give a function"):
        AblationCheck(**options)


def test_what_ablation_may_be():
    check = quick()
    assert [as_check(given) for given in (None, False, True, check)] == [None, None, AblationCheck(), check]
    for wrong in (1, "yes", quick):
        with pytest.raises(TypeError, match="give True, or AblationCheck"):
            as_check(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ablation": AblationCheck(score="val_loss"), "held_out": data()}, "score='val_loss' names a metric"),
        ({"ablation": True}, "ablation has nothing to measure: give held_out="),
    ],
)
def test_a_loop_without_what_it_needs_is_told_at_once(options: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        lm.LSTMMonitor(Network(), **options)


def test_rankings_begin_with_the_one_that_is_watched():
    report = lm.characterize(Network(), data(), horizon=16)
    given = report["rnn.l0"].ranking
    check = AblationCheck(rankings=[given, "auto", "measured"])
    assert rankings_of(check, "auto") == ("auto", given, "measured")
    assert rankings_of(check, "settling_time") == ("settling_time", given, "auto", "measured")
    monitor, _ = train(Network(), ablation=check)
    assert [trial.ranking.name for trial in monitor.report.study["rnn.l0"].trials][1] == given.name


def test_a_check_is_a_plain_value():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pickle.loads(pickle.dumps(quick())) == quick()
    with pytest.raises(AttributeError):
        quick().mode = "mean"  # type: ignore[misc]
