"""A loop is the same to the last bit with and without the monitor, with checks at the hook and beside the training."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import lstm_monitor as lm
from lstm_monitor.monitor.background import BackgroundCheck
from tests.cuda import models
from tests.cuda.place import DEVICE, DRY, MARKS, sized
from tests.cuda.reports import distance, ranks_agree
from tests.cuda.training import EVERY, STEPS, Noisy, differing, train
from tests.helpers import traces

pytestmark = [*MARKS, pytest.mark.usefixtures("deterministic")]
ROOT = Path(__file__).parents[2]
CHECKS = 1 + STEPS // EVERY


@pytest.fixture
def begun(monkeypatch):
    """The checks that were begun beside a training."""
    jobs, start = [], BackgroundCheck.start

    def counted(self, job):
        jobs.append(job)
        return start(self, job)

    monkeypatch.setattr(BackgroundCheck, "start", counted)
    return jobs


@contextlib.contextmanager
def tf32(*, on):
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def at_the_hook(monitor, step):
    """A check by hand, which is never made beside the training."""
    if step % EVERY == 0:
        assert monitor.check() is not None


@pytest.mark.parametrize("on", [True, False], ids=["TF32 as torch has it", "TF32 off"])
def test_checks_beside_the_training(on, begun, tell):
    """Every periodic check is: the first, and those by hand, are not."""
    with tf32(on=on):
        different, sink = differing()
    tell("checks", len(sink.reports))
    tell("of them beside the training", len(begun))
    assert different == []
    assert len(sink.reports) == CHECKS
    assert len(begun) == CHECKS - 1


@pytest.mark.parametrize("on", [True, False], ids=["TF32 as torch has it", "TF32 off"])
def test_checks_at_the_hook(on, begun):
    with tf32(on=on):
        different, sink = differing(every_n_steps=lambda step: False, after=at_the_hook)
    assert different == []
    assert len(sink.reports) == CHECKS
    assert begun == []


@pytest.mark.parametrize("on", [True, False], ids=["TF32 as torch has it", "TF32 off"])
def test_what_is_found_beside_the_training_is_what_is_found_at_the_hook(on, tell):
    with tf32(on=on):
        _, _, beside = train(True)
        _, _, direct = train(True, every_n_steps=lambda step: False, after=at_the_hook)
    assert [report.step for report in beside.reports] == [report.step for report in direct.reports]
    for one, other in zip(beside.reports, direct.reports, strict=True):
        far = distance(one, other)
        far.tell(tell)
        assert far.largest <= 1e-5
        assert far.apart <= 0.005
        assert ranks_agree(one, other) >= 0.999


KINDS = {
    "GRU": lambda: Noisy(nn.GRU(models.FEATURES, models.CELLS, num_layers=2, batch_first=True)),
    "RNN": lambda: Noisy(nn.RNN(models.FEATURES, models.CELLS, batch_first=True)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds(kind):
    assert differing(make=KINDS[kind])[0] == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_training_under_autocast(dtype):
    if DRY and dtype == torch.float16:
        dtype = torch.bfloat16  # not on every CPU
    different, sink = differing(around=lambda: torch.autocast(DEVICE.type, dtype))
    assert different == []
    assert len(sink.reports) == CHECKS


def test_a_training_with_its_ablation():
    check = lm.AblationCheck(rankings=["auto"], random_orders=1, points=3, seconds=None)
    different, sink = differing(ablation=check)
    assert different == []
    assert sink.reports[-1].study is not None


def test_a_training_on_a_stream_of_its_own(tell):
    """The copies that a check reads are made on the stream that is current at the hook."""
    if DRY:
        return tell("not run", "needs a GPU")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        different, sink = differing()
    assert different == []
    assert len(sink.reports) == CHECKS
    return None


def test_a_training_that_goes_on_at_once_does_not_reach_into_its_check(begun):
    """Weights are overwritten right after the hook, while the check of what they were may not have begun."""

    def spoil(monitor, step):
        if step == EVERY:
            for parameter in monitor.model.parameters():
                parameter.data.zero_()

    _, _, spoilt = train(True, steps=EVERY + 1, after=spoil)
    _, _, plain = train(True, steps=EVERY + 1)
    one, other = (next(report for report in sink.reports if report.step == EVERY) for sink in (spoilt, plain))
    assert distance(one, other).apart == 0


def test_a_planted_draw_is_caught(monkeypatch):
    """That these tests can fail."""
    from lstm_monitor.monitor import check as checking

    find = checking.find_layers

    def drawing(*given):
        torch.rand(1, device=DEVICE)
        return find(*given)

    monkeypatch.setattr(checking, "find_layers", drawing)
    different, _ = differing()
    assert [path for path in different if path.startswith("/random" if DRY else "/cuda")]
    assert [path for path in different if path.startswith("/weights")]


def test_a_state_that_is_saved_waits_for_the_check():
    states = []
    train(True, steps=EVERY, after=lambda monitor, step: states.append(monitor.state_dict()))
    assert (states[-1]["checks"], states[-1]["last_step"]) == (2, EVERY)


FRESH = """
import sys, types
sys.modules["tests"] = types.ModuleType("tests")  # this folder, also where a library has installed one of its name
sys.modules["tests"].__path__ = ["tests"]
import torch
torch.use_deterministic_algorithms(True)
from torch import nn
from tests.cuda import models
from tests.cuda.training import Noisy, train

def make():
    return Noisy(nn.LSTM(models.FEATURES, models.CELLS, num_layers=2, dropout=0.3, batch_first=True))

torch.save(train(sys.argv[1] == "with", make=make)[1], sys.argv[2])
"""


def test_cudnn_dropout_in_processes_of_their_own(tmp_path):
    """Its state is made once a process and no seed sets it back; our runs in eval mode must not move it."""
    names = sized(["without", "again", "with"], ["with"])
    command = [sys.executable, "-W", "ignore", "-c", FRESH]
    runs = [
        subprocess.Popen([*command, name, tmp_path / name], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for name in names
    ]
    for run in runs:
        _, said = run.communicate(timeout=60)
        assert run.returncode == 0, said[-600:]
    found = {name: torch.load(tmp_path / name, weights_only=False) for name in names}
    unlike = {name: traces.differences(found[names[0]], found[name]) for name in names}
    assert unlike == {name: [] for name in names}
