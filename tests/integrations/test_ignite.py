import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lstm_monitor as lm
from lstm_monitor.integrations import IgniteLSTMMonitor
from tests.helpers.hosting import (
    DATA,
    HELD_OUT,
    KEY,
    STRICT,
    TARGETS,
    Closing,
    places,
    quick,
    studies,
    warned_once,
)
from tests.helpers.trainings import Network, differences, random_states, seed_all


class Training:
    """A model, its optimizer and the engine that trains it, with or without a monitor."""

    def __init__(self, monitor: IgniteLSTMMonitor | None = None, **network: Any) -> None:
        seed_all()
        self.model = Network(**network)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.engine = Engine(self.step)
        if monitor is not None:
            monitor.attach(self.engine, self.model)

    def step(self, engine: Engine, batch: Any) -> float:
        self.model.train()
        self.optimizer.zero_grad()
        loss = nn.functional.mse_loss(self.model(batch[0]), batch[1])
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def run(self, epochs: int = 2) -> dict[str, Any]:
        self.engine.run(DataLoader(TensorDataset(DATA, TARGETS), 16, shuffle=True), max_epochs=epochs)
        return {
            "weights": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": random_states(),
            "modes": [part.training for part in self.model.modules()],
        }


def monitor(**options: Any) -> IgniteLSTMMonitor:
    return IgniteLSTMMonitor(**{"held_out": HELD_OUT} | STRICT | options)


def test_the_training_is_the_same_and_is_watched() -> None:
    sink = Closing()
    watching = monitor(sinks=[sink], every_n_steps=2, every_n_epochs=1, ablation=quick())
    without, training = Training(noisy=True).run(), Training(watching, noisy=True)
    assert differences(without, training.run()) == []
    assert places(sink) == [(0, 0), (2, 0), (3, 1), (4, 1), (6, 1)]
    assert (studies(sink), sink.closed) == (1, 1)
    assert watching.report is not None
    assert training.engine.state.metrics[KEY] == watching.report.scalars()[KEY]


def test_a_checkpoint_goes_on(tmp_path: Path) -> None:
    first = monitor()
    training = Training(first)
    parts = {"model": training.model, "optimizer": training.optimizer, "trainer": training.engine, "monitor": first}
    training.engine.add_event_handler(Events.COMPLETED, Checkpoint(parts, DiskSaver(str(tmp_path))))
    training.run()
    (file,) = tmp_path.iterdir()

    sink = lm.MemorySink()
    second = monitor(sinks=[sink])
    resumed = Training(second)
    parts = {"model": resumed.model, "optimizer": resumed.optimizer, "trainer": resumed.engine, "monitor": second}
    Checkpoint.load_objects(parts, torch.load(file, weights_only=True))
    resumed.run(4)
    assert places(sink) == [(9, 3), (12, 4)]
    assert [report.checks for report in sink.reports] == [4, 5]


def test_another_run_goes_on_and_another_model_begins_anew() -> None:
    sink = lm.MemorySink()
    watching = monitor(sinks=[sink])
    one, other = Training(watching), Training(watching)
    one.run(1)
    one.run(2)
    other.run(1)
    assert places(sink) == [(0, 0), (3, 1), (6, 2), (0, 0), (3, 1)]


def test_a_fault_is_one_warning() -> None:
    wrong = monitor(held_out=HELD_OUT[..., :2], on_error="warn")
    assert differences(Training().run(), warned_once(Training(wrong).run)) == []


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_exception_closes_the_sinks_and_is_raised(error: type[BaseException]) -> None:
    sink = Closing()
    training = Training(monitor(sinks=[sink]))

    @training.engine.on(Events.ITERATION_COMPLETED(once=2))
    def fail() -> None:
        raise error

    with pytest.raises(error):
        training.run()
    assert sink.closed == 1


def test_an_exception_that_the_user_handles_stays_handled() -> None:
    sink, handled = Closing(), []
    training = Training(monitor(sinks=[sink]))

    @training.engine.on(Events.EXCEPTION_RAISED)
    def handle(error: BaseException) -> None:
        handled.append(error)

    @training.engine.on(Events.EPOCH_STARTED)
    def fail() -> None:
        raise ZeroDivisionError

    training.run()
    assert (len(handled), sink.closed) == (1, 1)


@pytest.mark.parametrize("skip_completed", [True, False])
def test_a_terminated_run_is_over(skip_completed: bool) -> None:
    sink = Closing()
    training = Training(monitor(sinks=[sink]))

    @training.engine.on(Events.ITERATION_COMPLETED(once=2))
    def stop() -> None:
        training.engine.terminate(skip_completed=skip_completed)

    training.run()
    assert (places(sink), sink.closed) == ([(0, 0), (2, 0)], 1)


def test_copies_before_and_after() -> None:
    watching = monitor()
    for _ in range(2):
        for other in (copy.deepcopy(watching), pickle.loads(pickle.dumps(watching))):
            assert other.monitor is None
            Training(other).run(1)
            assert other.report.checks == 2
        Training(watching).run(1)


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSTM_MONITOR", "off")
    watching = monitor(ablation=True)
    training = Training(watching)
    training.run()
    assert watching.report is None
    assert watching.state_dict()["checks"] == 0
    assert training.engine.state.metrics == {}
