"""One job beside a training on a GPU: in a thread that ends with it, and on a stream of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from threading import Thread
from typing import Generic, TypeVar

import torch
from torch import nn

from lstm_monitor.core.distributed import in_processes
from lstm_monitor.core.undisturbed import beside
from lstm_monitor.engines.fused import release_buffers
from lstm_monitor.layers.registered.registry import runs_steps

R = TypeVar("R")


def may_run_beside(model: nn.Module) -> bool:
    """Whether periodic checks of a model on a GPU are worked out beside its training.

    Not where several processes do in one order what they do together; nor where a registered cell runs by the user's
    own code; nor on several devices; nor where ``LSTM_MONITOR_BACKGROUND=off`` in the environment forbids it.
    """
    if in_processes() or os.environ.get("LSTM_MONITOR_BACKGROUND") == "off":
        return False
    return len({parameter.device for parameter in model.parameters()}) == 1 and not runs_steps(model)


class BackgroundCheck(Generic[R]):
    """Runs one job, from `start` to `collect`; what it raises is raised there.

    On a CUDA device it sees what was asked for before it began, and its results are ready when its thread has ended, so
    nothing has to be waited for on the training's own stream. Without a device (in tests) it is the thread alone: on
    the CPU two threads that both run torch slow each other.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        """Nothing runs yet."""
        self.device = device
        self.seconds = 0.0
        self._outcome: tuple[R] | BaseException | None = None
        self._process = os.getpid()
        self._thread: Thread | None = None

    def start(self, job: Callable[[], R]) -> None:
        """Begin; the training goes on meanwhile."""
        stream = None if self.device is None else _stream_of(self.device)
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(self.device))  # the copies that the job reads
        self._thread = Thread(target=self._run, args=(job, stream), name="lstm_monitor")
        self._thread.start()

    def ready(self) -> bool:
        """Whether `collect` returns at once."""
        return self._thread is not None and not self._thread.is_alive()

    def collect(self) -> R:
        """What the job returned, as soon as it has ended.

        Raises:
            RuntimeError: the process was forked from the one in which the job runs.
            BaseException: what the job raised.
        """
        if self._process == os.getpid() and self._thread is not None:
            self._thread.join()
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        if self._outcome is None:
            raise RuntimeError("a check that was being worked out stays in the process that began it")
        return self._outcome[0]

    def _run(self, job: Callable[[], R], stream: torch.cuda.Stream | None) -> None:
        began = time.perf_counter()
        try:
            with ExitStack() as stack:
                stack.callback(release_buffers)  # they are of this thread, which ends
                stack.enter_context(beside())
                if stream is not None:
                    stack.enter_context(torch.cuda.stream(stream))
                self._outcome = (job(),)
                if stream is not None:
                    stream.synchronize()  # here, not in the training; what it read may be freed from now on
        except BaseException as error:
            self._outcome = error
        self.seconds = time.perf_counter() - began


@cache
def _stream_of(device: torch.device) -> torch.cuda.Stream:
    """The same for every job: torch keeps the memory that a job took for later ones on its stream only."""
    return torch.cuda.Stream(device)
