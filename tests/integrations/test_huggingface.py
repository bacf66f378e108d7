import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

import lstm_monitor as lm
from lstm_monitor.integrations import HuggingFaceLSTMMonitor
from lstm_monitor.integrations.huggingface_callback import logits
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

ROWS = [{"x": x, "labels": y} for x, y in zip(DATA, TARGETS, strict=True)]
BATCH = {"x": HELD_OUT, "labels": HELD_OUT[:, -1:, 0]}


class Model(nn.Module):
    """Gives its loss first, where there are labels, as models of transformers do."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.network = Network(**options)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.network(x)
        loss = {} if labels is None else {"loss": nn.functional.mse_loss(logits, labels)}
        return loss | {"logits": logits}


def trainer(folder: Path, *callbacks: TrainerCallback, model: nn.Module | None = None, **options: Any) -> Trainer:
    seed_all()
    defaults: dict[str, Any] = {
        "num_train_epochs": 2, "per_device_train_batch_size": 8, "save_strategy": "no", "report_to": "none",
        "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False, "logging_strategy": "no",
    }  # fmt: skip
    arguments = TrainingArguments(str(folder), **defaults | options)
    rows: Any = ROWS
    return Trainer(
        model or Model(noisy=True), arguments, callbacks=list(callbacks), train_dataset=rows, eval_dataset=rows
    )


def trained(*given: Any, **options: Any) -> dict[str, Any]:
    running = trainer(*given, **options)
    running.train()
    return trace(running)


def trace(running: Any) -> dict[str, Any]:
    return {
        "weights": running.model.state_dict(),
        "optimizer": running.optimizer.state_dict(),
        "random": random_states(),
        "modes": [part.training for part in running.model.modules()],
    }


def monitor(**options: Any) -> HuggingFaceLSTMMonitor:
    return HuggingFaceLSTMMonitor(**{"held_out": BATCH, "layers": "network.*"} | STRICT | options)


def test_the_training_is_the_same_and_is_watched(tmp_path: Path) -> None:
    sink = Closing()
    watching = monitor(sinks=[sink], every_n_steps=2, every_n_epochs=1, ablation=quick(score))
    options = {"gradient_accumulation_steps": 2}
    assert differences(trained(tmp_path, **options), trained(tmp_path, watching, **options)) == []
    assert places(sink) == [(0, 0), (2, 0), (3, 1), (4, 1), (6, 1)]
    assert (studies(sink), sink.closed) == (1, 1)
    assert sink.reports[0]["network.rnn.l0"].ranking.name == "output_sensitivity"


def score(model: nn.Module) -> Tensor:
    return model(**BATCH)["loss"]


def test_the_output_is_what_is_no_loss() -> None:
    batch = Model()(**BATCH)
    for result in (batch, tuple(batch.values()), batch["logits"]):
        assert logits(result) is batch["logits"]


def test_a_checkpoint_goes_on_and_others_load_it(tmp_path: Path) -> None:
    saving = {"save_strategy": "epoch"}
    whole = trained(tmp_path / "whole", monitor(), **saving)
    checkpoint = str(tmp_path / "whole" / "checkpoint-6")
    kept = json.loads(Path(checkpoint, "trainer_state.json").read_text())["stateful_callbacks"]
    assert 1000 < len(json.dumps(kept["lstm_monitor"])) < 100_000

    for callbacks in ([], [monitor(sinks=[sink := lm.MemorySink()])]):
        resumed = trainer(tmp_path / "resumed", *callbacks, **saving)
        resumed.train(resume_from_checkpoint=checkpoint)
        assert differences(whole, trace(resumed)) == []
    assert places(sink) == [(12, 2)]
    assert sink.reports[0].checks == 3


@pytest.mark.thorough
def test_a_checkpoint_without_the_monitor_is_resumed_with_it(tmp_path: Path) -> None:
    saving = {"save_strategy": "epoch"}
    whole = trained(tmp_path, **saving)
    watching = monitor()
    resumed = trainer(tmp_path, watching, restore_callback_states_from_checkpoint=True, **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert differences(whole, trace(resumed)) == []
    assert watching.report is not None
    assert watching.report.checks == 2


def test_a_value_of_ours_picks_the_best_model_and_stops(tmp_path: Path) -> None:
    key = KEY.replace("rnn", "network.rnn")
    options = {
        "num_train_epochs": 6, "eval_strategy": "epoch", "save_strategy": "best", "load_best_model_at_end": True,
        "metric_for_best_model": key, "greater_is_better": True,
    }  # fmt: skip
    running = trainer(tmp_path, monitor(), EarlyStoppingCallback(2, early_stopping_threshold=9.0), **options)
    running.train()
    assert running.state.global_step == 18
    assert running.state.best_metric is not None
    resting = trainer(
        tmp_path, monitor(held_out=HELD_OUT[:, :, :1], on_error="warn"), EarlyStoppingCallback(2), **options
    )
    with pytest.warns(lm.MonitorWarning):
        resting.train()
    assert resting.state.global_step == 36


def test_a_fault_is_one_warning(tmp_path: Path) -> None:
    wrong = monitor(layers="nothing", on_error="warn")
    assert differences(trained(tmp_path), warned_once(lambda: trained(tmp_path, wrong))) == []


class Failing(TrainerCallback):
    def on_step_end(self, *_: Any, **__: Any) -> None:
        raise KeyboardInterrupt


@pytest.mark.thorough
def test_copies_several_models_and_ctrl_c(tmp_path: Path) -> None:
    sink = Closing()
    watching = monitor(sinks=[sink])
    for _ in range(2):
        for other in (copy.deepcopy(watching), pickle.loads(pickle.dumps(watching))):
            assert other.monitor is None
            trained(tmp_path, other, num_train_epochs=1)
            assert other.report.checks == 2
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path, watching, Failing(), model=Model())
    assert sink.closed == 1
    watching.close()
    assert sink.closed == 2
    assert places(sink) == [(0, 0), (0, 0)]


def test_two_trainings_of_one_trainer_begin_anew(tmp_path: Path) -> None:
    sink = lm.MemorySink()
    running = trainer(tmp_path, monitor(sinks=[sink]), max_steps=3)
    running.train()
    running.train()
    assert places(sink) == [(0, 0), (3, 1)] * 2


def test_options_are_told_at_once() -> None:
    with pytest.raises(TypeError, match="no argument 'held'.*'held_out'"):
        HuggingFaceLSTMMonitor(held=1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="nothing to measure"):
        HuggingFaceLSTMMonitor(ablation=True)
    assert torch.equal(monitor().options["held_out"]["x"], HELD_OUT)


def test_what_the_trainer_reports_to_tensorboard_has_our_values_beside(tmp_path: Path) -> None:
    trained(tmp_path, monitor(), report_to="tensorboard")
    assert list((tmp_path / "runs" / "lstm_monitor").glob("events.out.tfevents*"))
    assert lm.load_history(tmp_path).steps == (0, 6, 12)


@pytest.mark.thorough
def test_a_state_that_is_not_ours_is_one_warning(tmp_path: Path) -> None:
    trained(tmp_path, monitor(), save_strategy="epoch")
    file = tmp_path / "checkpoint-6" / "trainer_state.json"
    state = json.loads(file.read_text())
    state["stateful_callbacks"]["lstm_monitor"] = {"args": {}, "attributes": {"packed": "no state of ours"}}
    file.write_text(json.dumps(state))
    resumed = trainer(tmp_path, monitor(on_error="warn"))
    warned_once(lambda: resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6")))
    assert resumed.state.global_step == 12
