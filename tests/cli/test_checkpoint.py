"""Checkpoints: the same numbers as from the model, whatever the file, and nothing run that was not asked for."""

import os
import pickle
import tarfile
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import lstm_monitor as lm
from lstm_monitor.cli.checkpoint import WHY_NO_RUN, characterize_checkpoint
from lstm_monitor.layers.checkpoints.files import read_file
from lstm_monitor.layers.checkpoints.states import effective, state_of
from tests.helpers import trainings


class Net(nn.Module):
    """A recurrent layer and its reader, behind an embedding and beside what is no reader."""

    def __init__(self, rnn: nn.Module, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 3)
        self.rnn = rnn
        self.target_embedding = nn.Embedding(7, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 2)


LAYERS: dict[str, tuple[Callable[[], nn.Module], int, str | None]] = {
    "lstm": (lambda: nn.LSTM(3, 5), 5, None),
    "gru": (lambda: nn.GRU(3, 5), 5, None),
    "tanh": (lambda: nn.RNN(3, 5), 5, "rnn_tanh"),
    "relu": (lambda: nn.RNN(3, 5, nonlinearity="relu"), 5, "rnn_relu"),
    "stacked": (lambda: nn.GRU(3, 5, num_layers=3), 5, None),
    "bidirectional": (lambda: nn.LSTM(3, 5, num_layers=2, bidirectional=True), 10, None),
    "projected": (lambda: nn.LSTM(3, 8, num_layers=2, proj_size=2, bidirectional=True), 4, None),
    "projected to a reading of a GRU": (lambda: nn.LSTM(3, 6, proj_size=4), 4, None),
    "without bias": (lambda: nn.LSTM(3, 5, bias=False), 5, None),
    "float64": (lambda: nn.LSTM(3, 5, dtype=torch.float64), 5, None),
    "bfloat16": (lambda: nn.LSTM(3, 5, dtype=torch.bfloat16), 5, None),
    "one cell": (lambda: nn.LSTM(1, 1), 1, None),
    "lstm cell": (lambda: nn.LSTMCell(3, 5), 5, None),
    "gru cell": (lambda: nn.GRUCell(3, 5), 5, None),
    "rnn cell": (lambda: nn.RNNCell(3, 5, nonlinearity="relu"), 5, "rnn_relu"),
}


def saved(folder: Path, content: Any, name: str = "some.ckpt") -> Path:
    torch.save(content, folder / name)
    return folder / name


def assert_same(found: lm.Report, expected: lm.Report) -> None:
    """Every value, reason, order and reader of every layer."""
    assert [str(layer.key) for layer in found.layers] == [str(layer.key) for layer in expected.layers]
    for ours, theirs in zip(found.layers, expected.layers, strict=True):
        assert ours.kind == theirs.kind
        assert ours.metrics.paths() == theirs.metrics.paths()
        for path in theirs.metrics.paths():
            torch.testing.assert_close(
                ours.metrics[path].values, theirs.metrics[path].values, rtol=0, atol=0, equal_nan=True
            )
            assert torch.equal(ours.metrics[path].reasons, theirs.metrics[path].reasons)
        torch.testing.assert_close(ours.ranking.scores, theirs.ranking.scores, rtol=0, atol=0, equal_nan=True)
        assert ours.ranking.order.tolist() == theirs.ranking.order.tolist()
        assert ours.ranking.name == theirs.ranking.name
        assert ours.ranking.words.partition(", since")[0] == theirs.ranking.words.partition(", since")[0]


@pytest.mark.parametrize("name", LAYERS)
def test_a_network_gives_the_numbers_of_its_model(tmp_path: Path, name: str) -> None:
    make, width, kind = LAYERS[name]
    model = Net(make(), width)
    path = saved(tmp_path, {"state_dict": model.state_dict(), "epoch": 3})
    found = characterize_checkpoint(path, kind=kind)  # type: ignore[arg-type]  # a string of the table
    assert_same(found.report, lm.characterize(model))  # a module without forward cannot be run either
    assert WHY_NO_RUN in found.report.layers[0].ranking.words
    assert found.notes == ()


@pytest.mark.parametrize("name", ["lstm", "tanh", "bidirectional", "projected", "lstm cell"])
def test_a_bare_layer_gives_the_numbers_of_its_model(tmp_path: Path, name: str) -> None:
    make, _, kind = LAYERS[name]
    model = make()
    found = characterize_checkpoint(saved(tmp_path, model.state_dict()), kind=kind)  # type: ignore[arg-type]  # a string of the table
    assert_same(found.report, lm.characterize(model))


@pytest.mark.parametrize("by", ["std_x_outgoing", "settling_time"])
def test_rank_by_is_that_of_characterize(tmp_path: Path, by: str) -> None:
    model = Net(nn.LSTM(3, 5), 5)
    path = saved(tmp_path, model.state_dict())
    assert_same(characterize_checkpoint(path, rank_by=by).report, lm.characterize(model, rank_by=by))
    with pytest.raises(ValueError, match="rank_by='measured' runs the network, but a checkpoint holds the weights"):
        characterize_checkpoint(path, rank_by="measured")


def _old_format(folder: Path, state: Any) -> Path:
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    return folder / "old.pth"


def _safetensors(folder: Path, state: Any) -> Path:
    safetensors.torch.save_file(state, folder / "model.weights")
    return folder / "model.weights"


@pytest.mark.parametrize(
    "save",
    [
        saved,
        _old_format,
        _safetensors,
        lambda folder, state: saved(folder, {"model_state_dict": state, "optimizer": {"state": {}}}),
        lambda folder, state: saved(folder, {"epoch": 3, "ckpt": {"model": {"net": state}}}),
        lambda folder, state: saved(folder, {"ema": state, "model": state}),
        lambda folder, state: saved(folder, {f"module._orig_mod.{name}": state[name] for name in state}),
        lambda folder, state: saved(folder, {"n_averaged": torch.tensor(3)} | {f"module.{k}": state[k] for k in state}),
    ],
)
def test_the_weights_are_found_in_any_file(tmp_path: Path, save: Callable[[Path, Any], Path]) -> None:
    model = Net(nn.GRU(3, 5), 5)
    assert_same(characterize_checkpoint(save(tmp_path, model.state_dict())).report, lm.characterize(model))


def test_parts_saved_apart_are_named_by_their_parts(tmp_path: Path) -> None:
    path = saved(tmp_path, {"encoder": nn.GRU(3, 4).state_dict(), "decoder": nn.LSTM(3, 4).state_dict(), "step": 4})
    found = characterize_checkpoint(path).report
    assert [str(layer.key) for layer in found.layers] == ["encoder.l0", "decoder.l0"]
    below = characterize_checkpoint(path, prefix="decoder").report
    assert [str(layer.key) for layer in below.layers] == ["l0"]
    with pytest.raises(ValueError, match=r"prefix 'coder\.'; the names start with encoder, decoder"):
        characterize_checkpoint(path, prefix="coder")


def _weight_norm(model: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old function is deprecated, its checkpoints remain
        nn.utils.weight_norm(model.rnn, "weight_hh_l0")


def _spectral_norm(model: nn.Module) -> None:
    nn.utils.spectral_norm(model.rnn, "weight_hh_l0")
    model.rnn.weight_hh_l0_v.copy_(torch.randn(5))  # such vectors as a training leaves


@pytest.mark.parametrize(
    "change",
    [
        _weight_norm,
        lambda model: parametrizations.weight_norm(model.rnn, "weight_hh_l0"),
        lambda model: parametrizations.weight_norm(model.rnn, "weight_hh_l0", dim=1),
        lambda model: parametrizations.spectral_norm(model.rnn, "weight_hh_l0"),
        lambda model: prune.l1_unstructured(model.rnn, "weight_hh_l0", amount=0.4),
    ],
)
def test_weights_that_are_computed_are_computed_here(change: Callable[[nn.Module], None]) -> None:
    model = Net(nn.LSTM(3, 5), 5)
    change(model)
    state = {name: tensor * 1.5 if "weight_hh" in name and tensor.dim() > 1 and not name.endswith("mask") else tensor
             for name, tensor in model.state_dict().items()}  # fmt: skip
    model.load_state_dict(state)
    model.eval()
    with torch.no_grad():
        for hook in model.rnn._forward_pre_hooks.values():
            hook(model.rnn, ())
        expected = model.rnn.weight_hh_l0
        assert torch.equal(effective(state)["rnn.weight_hh_l0"], expected)


def test_old_spectral_norm_is_that_of_the_module() -> None:
    linear = nn.utils.spectral_norm(nn.Linear(5, 5)).eval()
    linear(torch.randn(2, 5))
    found = effective({f"rnn.{name.replace('weight', 'weight_hh_l0')}": t for name, t in linear.state_dict().items()})
    torch.testing.assert_close(found["rnn.weight_hh_l0"], linear.weight, rtol=1e-6, atol=0)


def test_dropped_weights_of_fastai_are_the_raw_ones() -> None:
    own = nn.LSTM(3, 5).state_dict()
    raw = own.pop("weight_hh_l0")
    state = {"0.rnns.0.weight_hh_l0_raw": raw} | {f"0.rnns.0.module.{name}": own[name] for name in own}
    assert torch.equal(effective(state)["0.rnns.0.module.weight_hh_l0"], raw)


@pytest.mark.parametrize("package", trainings.PACKAGES)
def test_lightning_checkpoints_with_our_callback(tmp_path: Path, package: str) -> None:
    model = trainings.modules(package).Plain()
    model.save_hyperparameters({"hidden": 6, "rates": [0.1, 0.2], "name": "a"})
    checkpoint = import_module(f"{package}.callbacks").ModelCheckpoint(tmp_path, save_last=True)
    trainer = trainings.trainer(
        package, tmp_path, trainings.callback(package), checkpoint, enable_checkpointing=True, max_epochs=1
    )
    trainer.fit(model, trainings.loader(), trainings.loader(1))
    found = characterize_checkpoint(tmp_path / "last.ckpt", rank_by="std_x_outgoing")
    assert_same(found.report, lm.characterize(model.cpu(), rank_by="std_x_outgoing"))
    assert "callbacks" in read_file(tmp_path / "last.ckpt")


def test_a_plain_rnn_needs_its_kind(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a": nn.RNN(3, 5), "b": nn.LSTM(3, 5)})
    path = saved(tmp_path, model.state_dict())
    with pytest.raises(ValueError, match=r"^a\.l0: one row a cell.*--kind rnn_tanh .* or --kind rnn_relu"):
        characterize_checkpoint(path)
    assert len(characterize_checkpoint(path, layers="b.*").report.layers) == 1
    kinds = [layer.kind for layer in characterize_checkpoint(path, kind="rnn_relu").report.layers]
    assert kinds == ["rnn_relu", "lstm"]
    with pytest.raises(ValueError, match=r"kind='gru' fits none of the layers, by their shapes: a \(RNN\), b \(LSTM\)"):
        characterize_checkpoint(path, kind="gru")


def test_weights_that_are_no_layer_of_torch_are_named(tmp_path: Path) -> None:
    rnn = nn.LSTM(3, 4)
    odd = {"odd.weight_ih_l0": torch.randn(8, 3), "odd.weight_hh_l0": torch.randn(8, 4)}
    half = {"half.weight_hh_l0": torch.randn(16, 4), "half.weight_ih_l0": torch.randn(12, 3)}
    whole = {"int.weight_hh": torch.ones(16, 4, dtype=torch.int8), "int.weight_ih": torch.ones(16, 3)}
    state = {f"rnn.{name}": tensor for name, tensor in rnn.state_dict().items()} | odd | half | whole
    found = characterize_checkpoint(saved(tmp_path, state | {"rnn.peephole": torch.ones(4)}))
    assert [str(layer.key) for layer in found.report.layers] == ["rnn.l0"]
    odd_words, half_words, whole_words = found.report.skipped
    assert "odd (weights in the checkpoint): weight_hh_l0 has 8 rows for 4 cells" in odd_words
    assert "half" in half_words
    assert "size mismatch" in half_words
    assert "torch.int8" in whole_words
    assert found.notes[0].startswith("rnn holds peephole too")
    with pytest.raises(ValueError, match="no layer of the checkpoint can be read: odd"):
        characterize_checkpoint(saved(tmp_path, odd))


def test_a_file_without_recurrent_weights_is_listed(tmp_path: Path) -> None:
    path = saved(tmp_path, {"state_dict": nn.Linear(3, 4).state_dict(), "epoch": 3})
    with pytest.raises(ValueError, match=r"holds no recurrent weights .* It is a dict of state_dict, epoch"):
        characterize_checkpoint(path)


class Bomb:
    """What a stranger's file may hold."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_strangers_file_is_not_unpickled(tmp_path: Path) -> None:
    content = {"state_dict": nn.LSTM(3, 4).state_dict(), "extra": Bomb(tmp_path / "boom")}
    path = saved(tmp_path, content)
    with pytest.raises(ValueError, match="mkdir'.*runs code of whoever made the file.*--unsafe-pickle"):
        characterize_checkpoint(path)
    assert not (tmp_path / "boom").exists()
    assert len(characterize_checkpoint(path, unsafe_pickle=True).report.layers) == 1
    assert (tmp_path / "boom").exists()  # so it would have run


def test_plain_settings_and_parameters_need_no_unpickling(tmp_path: Path) -> None:
    model = Net(nn.LSTM(3, 5), 5)
    settings = {"hyper_parameters": Namespace(hidden=5, folder=Path("data"))}
    path = saved(tmp_path, settings | {"state_dict": dict(model.named_parameters())})
    assert_same(characterize_checkpoint(path).report, lm.characterize(model))


def test_numbers_of_numpy_need_no_unpickling(tmp_path: Path) -> None:
    model = Net(nn.LSTM(3, 5), 5)
    extra = {"best": np.float64(0.5), "random": np.random.get_state(), "counts": np.arange(3), "epoch": np.int64(2)}
    assert_same(characterize_checkpoint(saved(tmp_path, extra | {"model": model.state_dict()})).report,
                lm.characterize(model))  # fmt: skip
    with pytest.raises(ValueError, match="more than tensors and plain values"):
        read_file(saved(tmp_path, {"objects": np.array([Bomb(tmp_path / "boom")], dtype=object)}))
    assert not (tmp_path / "boom").exists()


def _zipped(path: Path, name: str) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(name, "x")


def _tarred(path: Path) -> None:
    with tarfile.open(path, "w:gz"):
        pass


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("m.h5", lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n0000"), "is an HDF5 file, perhaps of Keras: load it"),
        ("m.keras", lambda path: _zipped(path, "model.weights.h5"), "is a model of Keras: load it there"),
        ("m.zip", lambda path: _zipped(path, "some.pt"), "is an archive: unpack it"),
        ("m.tar.gz", _tarred, "is an archive: unpack it"),
        ("model.safetensors.index.json", lambda path: path.write_text("{}"), "is the index of a checkpoint in several"),
        ("m.pkl", lambda path: path.write_bytes(pickle.dumps({"a": 1}, protocol=4)), "or it is damaged"),
        ("m.pt", lambda path: torch.jit.script(nn.ReLU()).save(path), "is a TorchScript archive"),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # other people still save such files
def test_files_of_another_kind_are_named_without_a_warning(
    tmp_path: Path, name: str, make: Callable[[Path], object], words: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(ValueError, match=words):
        read_file(tmp_path / name)


def test_a_whole_model_is_refused_until_told(tmp_path: Path) -> None:
    model = nn.Sequential(nn.RNN(3, 4))
    path = saved(tmp_path, model)
    with pytest.raises(ValueError, match="a whole model, or settings that are objects"):
        characterize_checkpoint(path)
    assert_same(characterize_checkpoint(path, unsafe_pickle=True).report, lm.characterize(model))


def test_files_that_are_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_file(tmp_path / "none.ckpt")
    with pytest.raises(ValueError, match="is a folder; give a checkpoint file; none lies in it"):
        read_file(tmp_path)
    path = saved(tmp_path, nn.LSTM(3, 4).state_dict())
    with pytest.raises(ValueError, match=r"is a folder; give a checkpoint file, such as .*some\.ckpt"):
        read_file(tmp_path)
    whole = path.read_bytes()
    for data in (b"", b"hello", b"epoch,loss\n1,2\n", whole[: len(whole) // 2], whole[:-100]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
            read_file(path)
    (tmp_path / "a.safetensors").write_bytes(b"hello")
    with pytest.raises(ValueError, match="cannot be read as a safetensors file"):
        read_file(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="holds no recurrent weights .* It is a list"):
        characterize_checkpoint(saved(tmp_path, [1, 2]))


def test_sorted_names_do_not_say_which_of_several_modules_reads(tmp_path: Path) -> None:
    model = nn.ModuleDict({"rnn": nn.GRU(3, 5, num_layers=2), "x": nn.Linear(5, 9), "y": nn.Linear(5, 2)})
    safetensors.torch.save_file(model.state_dict(), tmp_path / "a.safetensors")
    below, above = characterize_checkpoint(tmp_path / "a.safetensors").report.layers
    assert "(into the layer above, l1 and its own recurrence)" in below.ranking.words
    assert "(into its own recurrence)" in above.ranking.words
    known = characterize_checkpoint(saved(tmp_path, model.state_dict())).report["rnn.l1"]
    assert "(into x and its own recurrence)" in known.ranking.words


def test_nothing_random_is_drawn(tmp_path: Path) -> None:
    path = saved(tmp_path, Net(nn.LSTM(3, 5), 5).state_dict())
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index,union-attr]  # the tuple form
    characterize_checkpoint(path)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # type: ignore[index]  # the tuple form


def test_a_state_without_tensors_is_empty() -> None:
    assert state_of([1, 2]) == {}
    assert state_of({"state_dict": {"a": 1}}) == {}
