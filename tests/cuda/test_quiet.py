"""Nothing of ours waits for the device but in a check, and no memory is kept when the training is over."""

import contextlib
import gc
import threading
import time
import warnings

import pytest
import torch
from torch import nn

import lstm_monitor as lm
from lstm_monitor.engines.fused import release_buffers
from tests.cuda import models
from tests.cuda.place import DEVICE, DRY, MARKS, allocated, seen, sized, wait
from tests.cuda.reports import distance
from tests.cuda.training import collected, settings, train

pytestmark = MARKS
MIB = 2**20
LEAST = 64 * 1024
"""Bytes that do not count: tables of a few numbers, which are kept for the next check."""


@contextlib.contextmanager
def waiting_is(mode):
    """What torch does where it has to wait for the device: "error", "warn" or nothing."""
    if DRY:
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.fixture
def monitor():
    """Of a network of two layers; its first check was made, and no other is due."""
    _, device = models.pair("LSTM, two layers")
    monitor = lm.LSTMMonitor(device, models.sequences(), **settings(every_n_steps=lambda step: step % 10 == 0))
    monitor.on_train_begin()
    yield monitor
    monitor.close()


def test_the_guard_guards(tell):
    """That the next tests can fail."""
    if DRY:
        return tell("not run", "needs a GPU")
    values = torch.ones(3, device=DEVICE)
    with waiting_is("error"), pytest.raises(RuntimeError, match="synchronizing"):
        values.sum().item()
    return None


def test_hooks_that_are_not_due_do_not_wait(monitor):
    with waiting_is("error"):
        for batch in range(9):
            monitor.on_train_batch_begin(batch)
            monitor.on_train_batch_end(batch)
        monitor.on_epoch_begin(0)
    assert monitor.checks == 1


def test_a_hook_that_hands_on_what_was_found_beside_does_not_wait(monitor):
    monitor.steps = 9
    monitor.on_train_batch_end(9)
    while monitor._begun is not None and not monitor._begun[1].ready():
        time.sleep(1e-3)
    wait()
    with waiting_is("error"):
        monitor.on_train_batch_end(10)
    assert monitor.checks == 2


def test_how_often_a_check_waits(monitor, tell):
    """No demand: each time at the hook the training's stream runs empty."""
    threads = []

    def note(message, *rest):
        if "synchronizing" in str(message):
            threads.append(threading.current_thread().name)

    with warnings.catch_warnings(), waiting_is("warn"):
        warnings.simplefilter("always")
        warnings.showwarning = note
        monitor.steps = 9
        monitor.on_train_batch_end(9)
        monitor.settle()
    tell("waits at the hook", seen(sum(name != "lstm_monitor" for name in threads)))
    tell("beside it", seen(threads.count("lstm_monitor")))
    assert monitor.checks == 2


def test_no_memory_is_kept_after_a_training(tell):
    """The libraries' workspaces, one a stream, are told apart: torch keeps them for the next product there."""
    train(False)
    train(True)
    (plain, workspaces), (found, more) = bytes_after(False), bytes_after(True)
    tell("bytes kept", seen(found - plain))
    tell("of workspaces more", seen(f"{(more - workspaces) / MIB:.1f} MiB"))
    assert found - plain <= LEAST


def bytes_after(monitored):
    """Bytes that a training leaves on the device besides the libraries' workspaces, and those."""
    clear()
    before = allocated()
    kept = train(monitored)[0]
    release_buffers()
    collected()
    with_workspaces = allocated()
    clear()
    after = allocated()
    assert kept is not None
    return after - before, with_workspaces - after


def clear():
    """Everything that nothing holds, and the workspaces."""
    release_buffers()
    collected()
    if not DRY and hasattr(torch._C, "_cuda_clearCublasWorkspaces"):
        torch._C._cuda_clearCublasWorkspaces()
    gc.collect()


def test_no_memory_is_kept_after_a_report(tell):
    _, device = models.pair("GRU, two layers, both directions")
    lm.characterize(device, models.sequences(), horizon=sized(64, 16))
    clear()
    before = allocated()
    for _ in range(3):
        lm.characterize(device, models.sequences(), horizon=sized(64, 16))
    clear()
    tell("bytes kept", seen(allocated() - before))
    assert allocated() - before <= LEAST


def test_the_peak_of_a_check_beside_its_responses(tell):
    """A layer of 1,024 cells: 16 responses at a time, with what cuDNN keeps of the gates."""
    torch.manual_seed(0)
    network = nn.LSTM(16, sized(1024, 6), batch_first=True).to(DEVICE)
    lm.characterize(network, horizon=sized(256, 16))
    clear()
    before = allocated()
    if not DRY:
        torch.cuda.reset_peak_memory_stats()
    lm.characterize(network, horizon=sized(256, 16))
    wait()
    peak = 0 if DRY else torch.cuda.max_memory_allocated() - before
    one = 16 * 256 * 1024 * 4
    tell("peak", seen(f"{peak / MIB:.0f} MiB"))
    tell("all responses of a batch", f"{one / MIB:.0f} MiB")
    assert peak <= 40 * one


def test_a_device_with_little_memory_left(tell):
    """Where a check finds no room it is made in smaller parts, or on the host, which it says."""
    torch.manual_seed(0)
    snaps, horizon = lm.snapshot(nn.LSTM(16, sized(1024, 6), batch_first=True).to(DEVICE)), sized(1024, 16)
    plain = lm.characterize(snaps, horizon=horizon)
    clear()
    with at_most(allocated() + 160 * MIB):
        found = lm.characterize(snaps, horizon=horizon)
    distance(found, plain).tell(tell)
    assert distance(found, plain).apart <= 0.005


@contextlib.contextmanager
def at_most(size):
    """So many bytes may be taken from the device by this process."""
    if DRY:
        yield
        return
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(size / torch.cuda.mem_get_info()[1])
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
