"""Steps that are a CUDA graph, or compiled, with the monitor around: the same bits, and checks that see the layers."""

import shutil

import pytest
import torch
from torch import nn

import lstm_monitor as lm
from tests.cuda import models, training
from tests.cuda.place import DEVICE, DRY, MARKS, sized
from tests.cuda.reports import distance
from tests.cuda.training import STEPS, Noisy, differing, settings, train
from tests.helpers import traces

pytestmark = [*MARKS, pytest.mark.usefixtures("deterministic")]


class Plain(nn.Module):
    """Nothing random: what is captured is replayed as it is."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(models.FEATURES, models.CELLS, batch_first=True), nn.Linear(models.CELLS, 1)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def graphed(network):
    """The forward and backward pass as graphs; in eval mode the network runs as before."""
    sample = models.sequences().to(DEVICE)
    return network if DRY else torch.cuda.make_graphed_callables(network, (sample,))


@pytest.mark.parametrize("make", [Plain, Noisy])
def test_graphed_callables(make):
    """A graph that draws random numbers moves the device's generator at each replay, which a check puts back."""
    different, sink = differing(make=make, wrap=graphed)
    assert different == []
    assert len(sink.reports) == 4


def captured_training(monitored):
    """The whole step of the training is one graph that is replayed."""
    training.seed()
    network = Plain().to(DEVICE)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01, capturable=not DRY)
    x = models.sequences().to(DEVICE)

    def step():
        optimizer.zero_grad(set_to_none=False)
        network(x).square().mean().backward()
        optimizer.step()

    run = step if DRY else captured(step)
    sink = lm.MemorySink()
    monitor = lm.LSTMMonitor(network, models.sequences(9, 8), sinks=[sink], **settings()) if monitored else None
    if monitor is not None:
        monitor.on_train_begin()
    for number in range(STEPS):
        x.copy_(models.sequences(number))
        run()
        if monitor is not None:
            monitor.on_train_batch_end(0)
    if monitor is not None:
        monitor.on_train_end()
    return training.left(network, optimizer), sink


def captured(step):
    """A graph of one step; the first steps, which make what is kept, on another stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def test_a_captured_step():
    (first, _), (again, _), (found, sink) = (captured_training(monitored) for monitored in (False, False, True))
    assert traces.differences(first, again) == [], "without the monitor two trainings already differ"
    assert traces.differences(first, found) == []
    assert len(sink.reports) == 4
    gone = distance(sink.reports[0], sink.reports[-1])
    assert gone.largest > 1e-4, "the checks saw the weights as they were at the beginning"


def compiles():
    """A compiler of what this torch makes for the device: Triton needs one of C for its launcher."""
    return DRY or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def compiled(network):
    """In a dry run without code being made."""
    return torch.compile(network, backend="eager" if DRY else "inductor")


def test_compiled_steps(tell):
    """What is compiled may differ from the network itself; with and without the monitor it is the same code."""
    if not compiles():
        tell("not run", "no C compiler here")
        return
    torch._dynamo.reset()
    different, sink = differing(make=Plain, wrap=compiled)
    assert different == []
    assert len(sink.reports) == 4
    assert not sink.reports[0].skipped


def test_compiled_in_place(tell):
    """``network.compile()``, which leaves the class as it was."""
    if not compiles():
        tell("not run", "no C compiler here")
        return

    def wrap(network):
        network.compile(backend="eager" if DRY else "inductor")
        return network

    torch._dynamo.reset()
    different, sink = differing(make=Plain, wrap=wrap)
    assert different == []
    _, _, plain = train(True, make=Plain)
    far = distance(sink.reports[0], plain.reports[0])
    far.tell(tell)
    assert far.apart <= 0.005


def test_a_graph_is_captured_while_a_check_is_worked_out(tell):
    """Another thread that asks CUDA for memory meanwhile breaks a capture of the mode "global", torch's default."""
    if DRY:
        return tell("not run", "needs a GPU")
    _, device = models.pair("LSTM")
    monitor = lm.LSTMMonitor(device, models.sequences(), **settings(every_n_steps=1, horizon=sized(512, 16)))
    monitor.on_train_begin()
    monitor.on_train_batch_end(0)
    ones, graph = torch.ones(1000, device=DEVICE), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        twice = ones * 2
    graph.replay()
    monitor.on_train_end()
    assert twice.sum().item() == 2000
    assert monitor.checks == 2
    return None
