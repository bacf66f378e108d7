"""A Lightning training on the device is the same to the last bit with and without the callback."""

import pytest
import torch

import lstm_monitor as lm
from tests.cuda.place import DRY, MARKS
from tests.helpers import trainings
from tests.helpers.trainings import PACKAGES, callback, differences, loader, modules, sequences

pytestmark = [*MARKS, pytest.mark.usefixtures("deterministic")]
ACCELERATOR = {"accelerator": "cpu" if DRY else "gpu", "devices": 1}


def fit(folder, *ours, package=PACKAGES[0], module="Plain", noisy=False, **options):
    """One short training from fixed seeds, and all that it left behind."""
    trainings.seed_all()
    model = getattr(modules(package), module)(**({"noisy": True} if noisy else {}))
    if noisy:
        model.net.rnn.dropout = 0.0  # cuDNN's own dropout goes on from training to training in one process
    runner = trainings.trainer(package, folder, *ours, **{**ACCELERATOR, **options})
    runner.fit(model, loader(shuffle=True), loader(1, 16))
    return {**trainings.trace(runner, model), "cuda": None if DRY else torch.cuda.get_rng_state()}


RUNS = {
    "dropout and batch norm": {"noisy": True},
    "bf16-mixed": {"noisy": True, "precision": "bf16-mixed"},
    "16-mixed": {"precision": "bf16-mixed" if DRY else "16-mixed"},
    "bf16-true": {"precision": "bf16-true"},
    "two optimizers": {"module": "Two"},
    "gradients clipped and accumulated": {"gradient_clip_val": 0.1, "accumulate_grad_batches": 2},
}


@pytest.mark.parametrize("name", RUNS)
def test_every_bit_is_the_same_with_and_without(name, tmp_path, tell):
    ours = callback(PACKAGES[0], every_n_steps=2)
    first, again = (fit(tmp_path, **RUNS[name]) for _ in range(2))
    assert differences(first, again) == [], "without the callback two trainings already differ"
    found = fit(tmp_path, ours, **RUNS[name])
    tell("checks", ours.report.checks)
    assert ours.report.checks > 2
    assert differences(first, found) == []


def test_the_same_for_pytorch_lightning(tmp_path):
    ours = callback(PACKAGES[1], held_out=sequences(5, 8))
    first, found = fit(tmp_path, package=PACKAGES[1]), fit(tmp_path, ours, package=PACKAGES[1])
    assert differences(first, found) == []


def test_the_last_report_is_that_of_the_host(tmp_path, tell):
    """Activity: the same weights on the same data. Stimuli are those of the first check."""
    trainings.seed_all()
    model, sink = modules(PACKAGES[0]).Plain(), lm.MemorySink()
    ours = callback(PACKAGES[0], held_out=sequences(5, 8), sinks=[sink])
    trainings.trainer(PACKAGES[0], tmp_path, ours, **ACCELERATOR).fit(model, loader(), loader(1, 16))
    expected = lm.characterize(model.cpu(), sequences(5, 8), horizon=trainings.HORIZON)
    for found, exact in zip(sink.reports[-1].layers, expected.layers, strict=True):
        for name in ("activity/std", "activity/rms", "gates/saturation"):
            one, other = found.metrics[name].values, exact.metrics[name].values
            tell(name, (one - other).abs().max().item())
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)
