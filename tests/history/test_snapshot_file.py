"""Snapshots that were kept: any moment of a past training can be asked a new question."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lstm_monitor as lm
from lstm_monitor.history.loading import load_history
from lstm_monitor.history.sink import HistorySink
from lstm_monitor.history.snapshot_file import bytes_to_snapshots, snapshots_to_bytes
from tests.helpers.histories import Net, check_at, differences, kept, sequences, train

# torch's own note on speed
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

MODELS: dict[str, Any] = {
    "LSTM": lambda: Net(),
    "GRU": lambda: Net("GRU"),
    "both ways": lambda: Net(bidirectional=True, num_layers=2),
    "projected": lambda: nn.LSTM(3, 6, proj_size=2, batch_first=True),
    "float64": lambda: Net().double(),
}


def asked(report: lm.Report) -> list[tuple[Any, ...]]:
    """What a report says of its layers by itself, without what came before."""
    return [(layer.key, layer.metrics, layer.ranking, layer.trace, layer.settled) for layer in report.layers]


@pytest.mark.parametrize("name", ["LSTM", "GRU", "both ways"])
@pytest.mark.parametrize("with_data", [True, pytest.param(False, marks=pytest.mark.thorough)])
def test_the_same_question_gets_the_same_answer(name: str, with_data: bool, tmp_path: Path) -> None:
    sink = HistorySink(tmp_path, save_weights=True)
    train(MODELS[name](), [sink], sequences() if with_data else None, horizon=None)
    history = load_history(tmp_path)
    assert history.notes == ()
    for step in history.steps:
        again = lm.characterize(history.snapshot(step))
        assert differences(tuple(asked(history.report(step))), tuple(asked(again))) == []


def test_a_new_question_of_an_old_moment(tmp_path: Path) -> None:
    train(Net(), [HistorySink(tmp_path, save_weights=True)], sequences())
    (snapshot,) = load_history(tmp_path).snapshot(2, layer="rnn.l0")
    report = lm.characterize(snapshot, rank_by="settling_time", horizon=100)
    assert report["rnn.l0"].horizon == 100
    assert report["rnn.l0"].ranking.name == "step/settling_time"
    response = lm.respond(snapshot, snapshot.held_out)
    assert response.hidden.shape[1] == 6


def test_snapshots_are_what_the_model_was(tmp_path: Path) -> None:
    model = Net()
    train(model, [HistorySink(tmp_path, save_weights=True)], sequences())
    (snapshot,) = load_history(tmp_path).snapshot()
    assert torch.equal(snapshot.weights.weight_hh, model.rnn.weight_hh_l0)
    assert snapshot.held_out is not None
    assert torch.equal(snapshot.held_out.inputs, sequences())


@pytest.mark.parametrize("name", MODELS)
def test_every_field_comes_back(name: str) -> None:
    model = MODELS[name]()
    dtype = next(model.parameters()).dtype
    snaps = lm.snapshot(model, sequences().to(dtype), lengths=torch.arange(5, 13))
    again = bytes_to_snapshots(snapshots_to_bytes(snaps))
    assert differences(snaps, again) == []


def test_states_masks_half_precision_and_shared_tensors() -> None:
    (snap,) = lm.snapshot(nn.LSTM(3, 6, batch_first=True), sequences())
    assert snap.held_out is not None
    states = torch.randn(2, 8, 6)
    inputs = sequences().transpose(0, 1).contiguous().transpose(0, 1)
    held_out = replace(snap.held_out, h0=states[0], c0=states[1], inputs=inputs)
    snap = replace(snap, held_out=held_out, held_out_hidden=None, outgoing=torch.ones(6, dtype=torch.bfloat16))
    (again,) = bytes_to_snapshots(snapshots_to_bytes((snap,)))
    assert again.held_out_hidden is not None
    assert differences(snap, replace(again, held_out_hidden=None)) == []


def test_the_file_is_safetensors_with_names_that_people_read(tmp_path: Path) -> None:
    train(Net(), [HistorySink(tmp_path, save_weights=True)], sequences())
    data = next(tmp_path.glob("weights-0000000002-*.safetensors")).read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert {"rnn.l0/weights/weight_ih", "rnn.l0/point/mean", "rnn.l0/held_out/inputs"} <= set(header)
    assert all(isinstance(value, str) for value in header["__metadata__"].values())


def test_snapshots_for_another_sink_are_not_kept(tmp_path: Path) -> None:
    sinks = [HistorySink(tmp_path / "a"), HistorySink(tmp_path / "b", save_weights=True)]
    train(Net(), sinks, sequences())
    assert not list((tmp_path / "a").glob("*.safetensors"))
    assert len(list((tmp_path / "b").glob("*.safetensors"))) == 5


def test_a_registered_cell_is_code_and_is_not_kept(tmp_path: Path) -> None:
    (snap,) = lm.snapshot(Net(), sequences())
    zeros = torch.zeros(1, 6)
    own = lm.CellWeights(nn.Identity(), lambda cell, x, state: (state, state), 6, torch.zeros(3), (zeros,), (zeros,))
    other = replace(snap, key=lm.LayerKey("own", None), weights=own)
    sink = HistorySink(tmp_path, save_weights=True)
    sink.write(replace(check_at(0), snapshots=(other, snap)))
    sink.write(replace(check_at(1), snapshots=(other,)))
    history = load_history(tmp_path)
    assert [str(found.key) for found in history.snapshot(0)] == ["rnn.l0"]
    with pytest.raises(ValueError, match="no weights were kept at step 1"):
        history.snapshot(1)


def test_without_weights_the_way_to_keep_them_is_told(tmp_path: Path) -> None:
    kept(tmp_path, check_at(0))
    with pytest.raises(ValueError, match=r"no weights were kept at step 0; HistorySink\(path, save_weights=True\)"):
        load_history(tmp_path).snapshot()
    assert not list(tmp_path.glob("*.safetensors"))


def test_weights_that_are_gone_or_damaged_are_told(tmp_path: Path) -> None:
    train(Net(), [HistorySink(tmp_path, save_weights=True)], sequences())
    first, last = sorted(tmp_path.glob("*.safetensors"))[::4]
    first.unlink()
    last.write_bytes(last.read_bytes()[:100])
    (tmp_path / "weights-0000000099-20260101T000000000000-00.safetensors").write_bytes(b"")
    history = load_history(tmp_path)
    assert any(f"{first.name}: is missing" in note for note in history.notes)
    assert any("weights without a check" in note for note in history.notes)
    for step in (0, 6):
        with pytest.raises(ValueError, match="is damaged or gone"):
            history.snapshot(step)
    assert len(list(history.reports())) == 5


def test_snapshots_bring_their_own_data() -> None:
    snaps = lm.snapshot(Net(), sequences())
    with pytest.raises(ValueError, match="held_out= was given with snapshots"):
        lm.characterize(snaps, sequences())
    with pytest.raises(ValueError, match="rank_by='measured' needs the whole network"):
        lm.characterize(snaps, rank_by="measured")
    with pytest.raises(ValueError, match="layers='nn.l0' is not known"):
        lm.characterize(snaps, layers="nn.l0")
    with pytest.raises(TypeError, match="is no torch module"):
        lm.characterize([])
    assert [str(layer.key) for layer in lm.characterize(snaps, layers="rnn.*", horizon=32).layers] == ["rnn.l0"]
