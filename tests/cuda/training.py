"""A short training on the device, with and without a monitor, and all that it leaves behind."""

import copy
import gc

import torch
from torch import nn

import lstm_monitor as lm
from tests.cuda import models
from tests.cuda.place import DEVICE, DRY, sized, wait
from tests.helpers import traces

STEPS = 9
EVERY = 3


class Noisy(nn.Module):
    """Draws random numbers at every step, and keeps statistics."""

    def __init__(self, rnn=None):
        super().__init__()
        self.before, self.norm = nn.Dropout(0.3), nn.BatchNorm1d(models.CELLS)
        self.rnn = rnn or nn.LSTM(models.FEATURES, models.CELLS, num_layers=2, batch_first=True)
        self.head = nn.Linear(models.CELLS, 1)

    def forward(self, x):
        return self.head(self.norm(self.rnn(self.before(x))[0][:, -1]))


def seed(number=0):
    """Every generator, that of the device too."""
    traces.seed_all(number)


def settings(**options):
    """A monitor that checks every third step, whatever that costs, and raises its errors."""
    return {"every_n_steps": EVERY, "budget": None, "horizon": sized(64, 16), "on_error": "raise", "history": False,
            **options}  # fmt: skip


def train(monitored, make=Noisy, *, steps=STEPS, around=None, wrap=None, after=None, **options):
    """One training from fixed seeds: the network, all that is left, and what the monitor's sink got.

    `around`: a context around every step. `wrap`: of the network, as ``torch.compile``. `after`: called with the
    monitor and the number of the step, when its hook is over.
    """
    seed()
    network = make().to(DEVICE)
    runs = network if wrap is None else wrap(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    sink = lm.MemorySink()
    monitor = lm.LSTMMonitor(runs, models.sequences(9, 8), sinks=[sink], **settings(**options)) if monitored else None
    seed(1)
    if monitor is not None:
        monitor.on_train_begin()
    for step in range(1, steps + 1):
        x = models.sequences(step).to(DEVICE)
        optimizer.zero_grad()
        with around() if around else torch.enable_grad():
            loss = runs(x).float().square().mean()
        loss.backward()
        optimizer.step()
        if monitor is not None:
            monitor.on_train_batch_end(0)
            if after is not None:
                after(monitor, step)
    if monitor is not None:
        monitor.on_train_end()
    wait()
    return network, left(network, optimizer), sink


def left(network, optimizer):
    """All that a training leaves behind."""
    kept = {
        "weights": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": traces.random_states(),
        "cuda": None if DRY else torch.cuda.get_rng_state(),
        "modes": [part.training for part in network.modules()],
        "hooks": [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in network.modules()],
        "requires grad": [parameter.requires_grad for parameter in network.parameters()],
    }
    return copy.deepcopy(kept)


def differing(**options):
    """Where a training with the monitor differs, and the reports; the training itself has to be repeatable."""
    first, again = (train(False, **options_of(options))[1] for _ in range(2))
    unlike = traces.differences(first, again)
    assert unlike == [], f"without the monitor two trainings already differ, so nothing can be told: {unlike}"
    _, found, sink = train(True, **options)
    return traces.differences(first, found), sink


def options_of(options):
    """Those that are not the monitor's."""
    return {name: value for name, value in options.items() if name in ("make", "steps", "around", "wrap")}


def collected():
    """What nothing holds is freed."""
    gc.collect()
    wait()
