"""Two processes that share work: run as ``python sharing_processes.py RANK STORE OUT``; what is found goes to OUT."""

import os
import sys
import time
import warnings
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed, nn

import lstm_monitor as lm
from lstm_monitor.core import distributed as core_distributed
from lstm_monitor.core.distributed import from_each, from_first, shared, together

RANK, STORE, OUT = (int(sys.argv[1]), *sys.argv[2:]) if __name__ == "__main__" else (0, "", "")
MINE = RANK == 1  # the process in which things fail


def error_of(act, *, inside=together):
    """What is raised by an act inside of a block."""
    try:
        with inside():
            act()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return ""


def fails(error):
    if MINE:
        raise error


def job(number):
    if number == 1:
        raise ValueError("no such thing")
    return number


def meetings():
    found = {}
    base = torch.arange(1000.0)
    with together():
        jobs = [lambda k=k: (RANK, k, base[k : k + 2], torch.tensor(k > 1), torch.empty(0, 3)) for k in range(5)]
        found["jobs"] = shared(jobs, [1, 1, 1, 1, 9])
        found["first"], found["each"] = from_first(lambda: RANK), from_each(lambda: RANK)
        found["inside a job"] = shared([core_distributed.processes, lambda: shared([lambda: RANK, lambda: RANK])])
    found["a job fails"] = error_of(lambda: shared([lambda k=k: job(k) for k in range(2)]))
    found["before a meeting"] = error_of(lambda: (fails(KeyError("lost")), from_first(lambda: 1)))
    found["before the end"] = error_of(lambda: fails(OSError("full")))
    found["interrupted"] = error_of(lambda: fails(KeyboardInterrupt()))
    found["another thing"] = error_of(lambda: (from_each if MINE else from_first)(lambda: 1))
    with together():  # all of these left the processes in step
        found["after"] = from_each(lambda: RANK)
    return found


class Net(nn.Module):
    def __init__(self, layers=1):
        super().__init__()
        self.rnn = nn.LSTM(2, 6, layers, batch_first=True)
        self.norm, self.out = nn.BatchNorm1d(6), nn.Linear(6, 1)

    def forward(self, x):
        return self.out(self.norm(self.rnn(x)[0][:, -1]))


def train(options, epochs=3, rest_after=None):
    """A training that averages gradients; the monitor, what was told, and how the training ended."""
    torch.manual_seed(0)
    model, x = Net(layers=2), torch.randn(32, 16, 2)
    optimizer = torch.optim.Adam(model.parameters())
    held_out = torch.randn(12, 16, 2, generator=torch.Generator().manual_seed(RANK))  # each its own
    monitor = None if options is None else lm.LSTMMonitor(model, held_out, horizon=64, **options)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if monitor is not None:
            monitor.on_train_begin()
        for epoch in range(epochs):
            for step in range(2):
                optimizer.zero_grad()
                model(x[RANK::2]).square().mean().backward()
                for parameter in model.parameters():
                    distributed.all_reduce(parameter.grad)
                optimizer.step()
                if monitor is not None:
                    monitor.on_train_batch_end(step)
            if monitor is not None and MINE and epoch == rest_after:
                with monitor.guard.protect("Something"):
                    raise ValueError("gone")
            if monitor is not None:
                monitor.on_epoch_end(epoch)
        if monitor is not None:
            monitor.on_train_end()
    ended = [*model.state_dict().values(), torch.get_rng_state()]
    return monitor, [str(item.message) for item in told], ended


@contextmanager
def switched_off(here):
    if here:
        os.environ["LSTM_MONITOR"] = "off"
    try:
        yield
    finally:
        os.environ.pop("LSTM_MONITOR", None)


def trainings():
    study = lm.AblationCheck(rankings=["measured"], random_orders=1, points=3, seconds=None)
    sinks = {name: lm.MemorySink() for name in ("alone", "shared")}
    options = {"budget": None, "ablation": study, "on_error": "raise"}
    found = {}
    _, _, found["without"] = train(None)
    alone, _, ended = train(options | {"sinks": [sinks["alone"]]} if RANK == 0 else None)
    found["alone"] = (ended, alone and alone.report)
    monitor, told, ended = train(options | {"shared": True, "sinks": [sinks["shared"]]})
    found["shared"] = (ended, monitor.report, told)
    found["written"] = {name: len(sink.reports) for name, sink in sinks.items()}
    governed, _, _ = train({"shared": True, "budget": 0.01, "every_n_steps": 1, "on_error": "raise"}, epochs=4)
    found["governed"] = governed.checks
    rests, told, _ = train({"shared": True, "budget": None}, rest_after=1)
    found["rests"] = (rests.checks, rests.guard.reason, told)
    with switched_off(here=MINE):
        off, told, ended = train({"shared": True, "budget": None})
    found["off in one"] = (off.checks, told, ended)
    with switched_off(here=True):
        off, told, _ = train({"shared": True, "budget": None})
    found["off"] = (off.checks, told)
    return found


def studies():
    torch.manual_seed(1)
    model, x = Net(), torch.randn(140, 8, 2)
    if MINE:
        model.norm.running_mean += 1  # as the statistics of DDP's processes differ
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = {"random_orders": 2, "points": 4, "rankings": ["measured", "greedy"]}
    kinds = {
        "all": {"loss": lambda net, batch: (net(batch) - batch.sum((1, 2))[:, None]).square().mean(1)},
        "top": {"top": 3},
        "in time": {"seconds": 1.0},
    }
    found = {}
    for name, more in kinds.items():
        alone = None if MINE or name == "in time" else lm.ablation_study(model, held_out=x, **options, **more)
        with together():
            found[name] = alone, lm.ablation_study(model, held_out=x, **options, **more)
    found["untouched"] = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def talks(net):
        total = net(x).mean()
        distributed.all_reduce(total)
        return total

    quick = {"rankings": [], "random_orders": 0}
    found["talks"] = error_of(lambda: lm.ablation_study(model, talks, **quick))
    found["other data"] = error_of(lambda: lm.ablation_study(model, held_out=x[RANK * 70 :][:70], **quick))
    return found


def lost():
    """The group's last hours: a process that comes too late, then one that is gone."""
    core_distributed._KNOWN.clear()
    core_distributed.TIMEOUT = timedelta(seconds=1)
    with together():
        pass
    began = time.perf_counter()
    if MINE:
        time.sleep(3)
    late = error_of(lambda: from_first(lambda: 1))
    waited = time.perf_counter() - began
    again = error_of(lambda: from_first(lambda: 1))
    core_distributed._KNOWN.clear()
    core_distributed.TIMEOUT = timedelta(minutes=1)
    with together():
        pass
    if MINE:
        torch.save({}, f"{OUT}.{RANK}")
        os._exit(0)
    return {"late": late, "waited": waited, "again": again, "gone": error_of(lambda: from_first(lambda: 1))}


if __name__ == "__main__":
    distributed.init_process_group("gloo", init_method=f"file://{STORE}", rank=RANK, world_size=2)
    torch.save({"meetings": meetings(), "trainings": trainings(), "studies": studies()}, f"{OUT}.found.{RANK}")
    torch.save(lost(), f"{OUT}.{RANK}")
    os._exit(0)  # the other one is gone
