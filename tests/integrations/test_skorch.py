import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetRegressor
from skorch.callbacks import Callback, EarlyStopping

import lstm_monitor as lm
from lstm_monitor.integrations import SkorchLSTMMonitor
from tests.helpers.hosting import (
    DATA,
    HELD_OUT,
    KEY,
    STRICT,
    TARGETS,
    Closing,
    places,
    quick,
    squared_errors,
    studies,
    warned_once,
)
from tests.helpers.trainings import Network, differences, random_states, seed_all


def net(*callbacks: Any, **options: Any) -> NeuralNetRegressor:
    seed_all()
    defaults = {"max_epochs": 2, "batch_size": 16, "lr": 0.05, "optimizer": torch.optim.Adam, "verbose": 0}
    return NeuralNetRegressor(Network, callbacks=list(callbacks), **defaults | options)


def fitted(*callbacks: Any, **options: Any) -> NeuralNetRegressor:
    return net(*callbacks, **options).fit(DATA, TARGETS)


def trace(trained: NeuralNetRegressor) -> dict[str, Any]:
    return {
        "weights": trained.module_.state_dict(),
        "optimizer": trained.optimizer_.state_dict(),
        "random": random_states(),
        "hooks": [len(part._forward_hooks) for part in trained.module_.modules()],
        "losses": [trained.history[:, name] for name in ("train_loss", "valid_loss")],
    }


def test_the_training_is_the_same_and_is_watched() -> None:
    sink = Closing()
    noisy = {"module__noisy": True, "iterator_train__shuffle": True}
    monitor = SkorchLSTMMonitor(sinks=[sink], every_n_steps=2, every_n_epochs=1, ablation=quick(), **STRICT)
    without = trace(fitted(**noisy))
    assert differences(without, trace(fitted(monitor, **noisy))) == []
    assert places(sink) == [(0, 0), (2, 0), (3, 1), (4, 1), (6, 1)]
    assert (studies(sink), sink.closed) == (1, 1)
    assert monitor.report is not None
    assert monitor.report["rnn.l0"].point_source == "held_out"


def test_held_out_data_are_the_nets_own_validation_split() -> None:
    monitor = SkorchLSTMMonitor(**STRICT)
    trained = fitted(monitor)
    _, valid = trained.get_split_datasets(DATA, TARGETS)
    assert monitor.monitor is not None
    assert torch.equal(monitor.monitor.held_out[0], torch.stack([x for x, _ in valid]))
    without = SkorchLSTMMonitor(**STRICT)
    fitted(without, train_split=None)
    assert without.report is not None
    assert without.report["rnn.l0"].point_source == "default"


class ByName(torch.nn.Module):
    """Takes its inputs by name, as skorch gives it a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network()

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self.network(x) * scale


def test_inputs_by_name_and_scored_by_the_net_itself() -> None:
    data = {"x": DATA.numpy(), "scale": np.ones((len(DATA), 1), np.float32)}
    nets: list[Any] = []
    check = quick(lambda module: float(nets[0].score(data, TARGETS.numpy())))
    monitor = SkorchLSTMMonitor(ablation=check, **STRICT)
    nets.append(NeuralNetRegressor(ByName, callbacks=[monitor], max_epochs=1, verbose=0))
    nets[0].fit(data, TARGETS.numpy())
    assert monitor.report is not None
    assert monitor.report.study is not None
    assert monitor.report.study.intact == pytest.approx(nets[0].score(data, TARGETS.numpy()), rel=1e-6)


def test_another_callback_monitors_a_value() -> None:
    stopped = fitted(SkorchLSTMMonitor(**STRICT), EarlyStopping(KEY, patience=2, threshold=10.0), max_epochs=9)
    assert len(stopped.history) == 3
    assert all(np.isfinite(stopped.history[:, KEY]))


def test_a_fault_is_one_warning_and_others_go_on_monitoring() -> None:
    stopping = EarlyStopping(KEY, patience=2)
    wrong = SkorchLSTMMonitor(held_out=HELD_OUT[..., :2])
    with pytest.warns(lm.MonitorWarning, match=r"Features|monitored"):
        trained = fitted(wrong, stopping, max_epochs=5)
    assert len(trained.history) == 5
    watched = warned_once(lambda: fitted(SkorchLSTMMonitor(held_out=HELD_OUT[..., :2])))
    assert differences(trace(watched), trace(fitted())) == []


def test_partial_fit_and_a_pickled_net_go_on_and_fit_begins_anew() -> None:
    sink = lm.MemorySink()
    trained = fitted(SkorchLSTMMonitor(sinks=[sink], **STRICT), max_epochs=1)
    trained.partial_fit(DATA, TARGETS)
    again = pickle.loads(pickle.dumps(trained)).partial_fit(DATA, TARGETS)
    assert places(sink) == [(0, 0), (3, 1), (6, 2)]
    (monitor,) = [callback for _, callback in again.callbacks_ if isinstance(callback, SkorchLSTMMonitor)]
    assert (monitor.report.step, monitor.report.epoch, monitor.report.checks) == (9, 3, 4)
    trained.fit(DATA, TARGETS)
    assert places(sink)[3:] == [(0, 0), (3, 1)]


def test_clones_and_grid_searches() -> None:
    monitor = SkorchLSTMMonitor(horizon=32, held_out=HELD_OUT, every_n_epochs=lm.every(2))
    for other in (clone(monitor), copy.deepcopy(monitor), pickle.loads(pickle.dumps(monitor))):
        assert differences(other.get_params()["held_out"], HELD_OUT) == []
    search = GridSearchCV(
        net(monitor, max_epochs=1), {"callbacks__SkorchLSTMMonitor__every_n_epochs": [1, 2]}, cv=2, error_score="raise"
    ).fit(DATA.numpy(), TARGETS.numpy())
    assert monitor.report is None  # its copies were trained
    found = dict(search.best_estimator_.callbacks_)["SkorchLSTMMonitor"]
    assert found.report.checks == 2


class Interrupting(Callback):
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def on_batch_end(self, net: Any, **kwargs: Any) -> None:
        raise self.error


def test_ctrl_c_and_exceptions_close_the_sinks() -> None:
    sink = Closing()
    monitor = SkorchLSTMMonitor(sinks=[sink], **STRICT)
    fitted(monitor, Interrupting(KeyboardInterrupt))
    assert (places(sink), sink.closed) == ([(0, 0), (1, 0)], 1)
    with pytest.raises(ZeroDivisionError):
        fitted(monitor, Interrupting(ZeroDivisionError))
    assert sink.closed == 1
    fitted(monitor)
    assert sink.closed == 3
    assert places(sink)[2:] == [(0, 0), (0, 0), (3, 1), (6, 2)]


def test_options_are_told_at_once() -> None:
    with pytest.raises(TypeError, match="no argument 'every_n_epoch'.*'every_n_epochs'"):
        SkorchLSTMMonitor(every_n_epoch=2)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="every_n_steps=0"):
        SkorchLSTMMonitor(every_n_steps=0)
    with pytest.raises(ValueError, match="every_n_steps=0"):
        SkorchLSTMMonitor().set_params(every_n_steps=0)
    with pytest.raises(ValueError, match="val_acc"):
        SkorchLSTMMonitor(ablation=lm.AblationCheck(score="val_acc"))
    assert SkorchLSTMMonitor(ablation=True).get_params()["ablation"] is True
    assert squared_errors(Network()).shape == (8,)
