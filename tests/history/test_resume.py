"""A real training that dies and goes on from its checkpoint has the history of one that never died."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lstm_monitor.history.history import History
from lstm_monitor.history.loading import load_history
from lstm_monitor.history.sink import HistorySink
from tests.helpers.trainings import PACKAGES, callback, loader, modules, seed_all, trainer

# a resumed training saves into the folder of the one that died
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


def _fit(package: str, folder: Path, dies_at: int | None = None, **options: Any) -> None:
    """Four epochs with a checkpoint after every second one, as a process of its own would run them."""
    base = __import__(package, fromlist=["Callback"])

    class Dies(base.Callback):  # type: ignore[misc, name-defined]
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == dies_at:
                raise RuntimeError("killed")

    seed_all()
    saves = base.callbacks.ModelCheckpoint(dirpath=folder / "kept", every_n_epochs=2, save_top_k=-1)
    watch = callback(package, every_n_steps=3, sinks=[HistorySink(folder / "history")])
    run = trainer(package, folder, saves, watch, Dies(), max_epochs=4, enable_checkpointing=True)
    run.fit(modules(package).Plain(), loader(), loader(seed=1), **options)


def _words(history: History) -> list[tuple[Any, ...]]:
    return [
        (report.step, report.checks, layer.ranking.order.tolist(), layer.rank_history.steps.tolist())
        for report in history.reports()
        for layer in report.layers
        if layer.rank_history is not None
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_it_has_no_gaps_and_no_doubles(package: str, tmp_path: Path) -> None:
    _fit(package, tmp_path / "whole")
    whole = load_history(tmp_path / "whole")
    dies_at = whole.steps[-2]
    with pytest.raises(RuntimeError, match="killed"):
        _fit(package, tmp_path / "broken", dies_at=dies_at)
    (checkpoint,) = (tmp_path / "broken" / "kept").iterdir()
    _fit(package, tmp_path / "broken", ckpt_path=checkpoint)
    broken = load_history(tmp_path / "broken")
    assert broken.steps == whole.steps
    assert len(broken.attempts) == 2
    assert [words[::3] for words in _words(broken)] == [words[::3] for words in _words(whole)]
    assert _words(broken) == _words(whole)
