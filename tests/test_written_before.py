"""Histories and checkpoints of earlier versions are read as they were written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import lstm_monitor as lm
from tests.helpers.written_before import FOLDER, fit

VALUES = json.loads((FOLDER / "values.json").read_text(encoding="utf-8"))
HISTORY = FOLDER / "history"


def test_every_report_has_the_values_of_then() -> None:
    reports = {str(report.step): report for report in lm.load_history(HISTORY).reports()}
    assert {step: report.scalars() for step, report in reports.items()} == VALUES["reports"]


def test_its_ablation_study_is_there() -> None:
    study = lm.load_history(HISTORY).study
    assert study is not None
    assert [str(layer.key) for layer in study.layers] == ["net.rnn.l0"]


def test_its_snapshots_are_characterized_with_the_values_of_then() -> None:
    history = lm.load_history(HISTORY)
    for step in history.steps:
        assert lm.characterize(history.snapshot(step)).scalars() == pytest.approx(
            VALUES["snapshots"][str(step)], rel=1e-3
        )


def test_a_training_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    shutil.copytree(HISTORY, tmp_path / "history")
    earlier = lm.load_history(HISTORY)
    watch, run = fit(tmp_path, max_epochs=3, ckpt_path=FOLDER / "training.ckpt")
    assert run.current_epoch == 3
    assert watch.report.checks == len(earlier) + 1
    assert watch.report.layers[0].rank_history.steps.tolist()[:-1] == list(earlier.steps)
    assert lm.load_history(tmp_path / "history").steps == (*earlier.steps, watch.report.step)


def test_its_checkpoint_holds_plain_values_alone() -> None:
    state = torch.load(FOLDER / "training.ckpt", weights_only=True)["callbacks"]["LSTMMonitor[lstm_monitor]"]
    assert state["checks"] == len(lm.load_history(HISTORY))
