"""Several processes that train one model share work: each does some of it, then all meet."""

from __future__ import annotations

import io
import math
import pickle
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, distributed

R = TypeVar("R")

TIMEOUT = timedelta(minutes=5)
"""Whoever waits longer for the others gives up with an error; shorter than torch's own limits, which end a training."""


def shared(jobs: Sequence[Callable[[], R]], costs: Sequence[float] | None = None) -> list[R]:
    """The results of all jobs in their order; inside `together` each process does a share, then all meet once.

    Every process has the same jobs, and calls this. Else, or alone, all jobs are done here.

    Args:
        jobs: what they return is pickled; tensors come back with their type, on the same kind of device.
        costs: about how much each takes, in any unit; by default all the same.

    Raises:
        Exception: what a job raised; the same in all processes.
    """
    peers = _here()
    if peers is None:
        return [job() for job in jobs]
    mine = shares([1.0] * len(jobs) if costs is None else costs, peers.count)[peers.rank]
    found = peers.meet(f"{len(jobs)} jobs", lambda: {number: jobs[number]() for number in mine})
    results = {number: result for part in found for number, result in part.items()}
    return [results[number] for number in range(len(jobs))]


def from_first(make: Callable[[], R]) -> R:
    """What the first process makes, for all; outside of `together` what this one makes.

    Raises:
        Exception: what `make` raised; the same in all processes.
    """
    peers = _here()
    if peers is None:
        return make()
    return peers.meet("the first one's", make if peers.rank == 0 else None)[0]


def from_each(make: Callable[[], R]) -> list[R]:
    """What each process makes, for all, in the order of the processes; outside of `together` what this one makes.

    Raises:
        Exception: what one of them raised; the same in all processes.
    """
    peers = _here()
    return [make()] if peers is None else peers.meet("each one's", make)


def processes() -> int:
    """How many processes share what is done here; 1 outside of `together`."""
    peers = _here()
    return 1 if peers is None else peers.count


def in_time(deadline: float) -> bool:
    """Whether the first process has not reached `deadline` yet, on its clock of `time.perf_counter`."""
    return deadline == math.inf or from_first(lambda: time.perf_counter() < deadline)


def in_processes() -> bool:
    """Whether this process is one of several that ``torch.distributed`` has brought together."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def is_first() -> bool:
    """Whether this is the first of several processes, or the only one."""
    return not in_processes() or distributed.get_rank() == 0


@contextmanager
def together() -> Iterator[None]:
    """Inside, the processes of ``torch.distributed`` share what can be shared: checks, studies, `shared` jobs.

    Every process enters and leaves the block and does the same in it, with the same model and data. They talk in a
    gloo group of their own, so that the training's is left alone. An error in one process is raised in all of them at
    their next meeting, the end of the block at the latest, and none waits for another for longer than 5 minutes.
    Nothing is shared where there is one process, nor in other threads.

    Raises:
        Exception: what another process raised.

    Example:
        >>> import lstm_monitor as lm, torch
        >>> with lm.together():  # alone: as without
        ...     study = lm.ablation_study(torch.nn.LSTM(1, 3), held_out=torch.randn(5, 4, 1), rankings=["measured"])
    """
    if not in_processes() or _HERE.get() is not None:  # in a block already, or in a job of one
        yield
        return
    peers = _peers()
    with _sharing((peers,)):
        try:
            yield
        except BaseException as error:
            peers.leave(error)
            raise
        peers.meet("the end", None)


class Peers:
    """The processes that share, as one of them sees it: its number ``rank`` of so many, its ``count``."""

    def __init__(self) -> None:
        """Every process makes it at the same time: a group of their own that needs no device."""
        self.rank, self.count = distributed.get_rank(), distributed.get_world_size()
        self._group = distributed.new_group(backend="gloo", timeout=TIMEOUT)
        self._told: Exception | None = None
        self._lost = ""

    def meet(self, topic: str, make: Callable[[], R] | None) -> list[R]:
        """What each process made; None where it makes nothing. `topic` must be the same in all of them.

        Raises:
            Exception: what the first of those that failed raised; also if they do different things.
        """
        made, message, error = None, b"", None
        if make is not None:
            try:
                with _sharing(()):
                    made = make()
                message = _packed(made)
            except Exception as caught:
                error = caught
        found: list[Any] = [_unpacked(raw) for raw in self._exchange(topic, message, error)]
        found[self.rank] = made
        return found

    def leave(self, error: BaseException) -> None:
        """Tell the others, who come to a meeting or to the end of the block, that this one does not go on."""
        if error is not self._told:
            try:
                self._exchange("", b"", error)
            except Exception as told:  # what is raised here is the error itself
                self._told = told

    def _exchange(self, topic: str, message: bytes, error: BaseException | None) -> list[bytes]:
        """One meeting of all."""
        if error is not None:
            message = pickle.dumps((type(error).__name__, str(error)))
        heads, found = self._in_touch([zlib.crc32(topic.encode()), error is not None, len(message)], message)
        failed = [rank for rank, (_, bad, _) in enumerate(heads) if bad]
        if failed:
            name, words = pickle.loads(found[failed[0]])
            self._told = _error(name, words, failed[0])
        elif len({about for about, _, _ in heads}) > 1:
            self._told = RuntimeError("the processes do different things, so they cannot share them")
        else:
            return found
        raise self._told from (error if isinstance(error, Exception) else None)

    def _in_touch(self, head: list[int], message: bytes) -> tuple[list[list[int]], list[bytes]]:
        """`_gathered`; once it failed, by a process that is gone or late, it is not tried again."""
        try:
            if not self._lost:
                return self._gathered(head, message)
        except Exception as error:
            self._lost = f"the processes have lost touch (one is gone, or took over {TIMEOUT}): {error}"
        self._told = RuntimeError(self._lost)
        raise self._told

    def _gathered(self, head: list[int], message: bytes) -> tuple[list[list[int]], list[bytes]]:
        """The heads and the messages of all."""
        heads = [torch.empty(len(head), dtype=torch.int64, device="cpu") for _ in range(self.count)]
        distributed.all_gather(heads, torch.tensor(head, device="cpu"), group=self._group)
        sizes = [int(one[-1]) for one in heads]
        largest = max(sizes)
        rows = [torch.empty(largest, dtype=torch.uint8, device="cpu") for _ in sizes]
        rows[self.rank][: len(message)] = torch.frombuffer(bytearray(message), dtype=torch.uint8) if message else 0
        if sum(size > 0 for size in sizes) == 1:
            distributed.broadcast(rows[sizes.index(largest)], sizes.index(largest), group=self._group)
        elif largest > 0:
            distributed.all_gather(rows, rows[self.rank].clone(), group=self._group)
        found = [row[:size].numpy().tobytes() for row, size in zip(rows, sizes, strict=True)]
        return [one.tolist() for one in heads], found


_HERE: ContextVar[tuple[Peers, ...] | None] = ContextVar("lstm_monitor_peers", default=None)
"""None outside of a block; empty inside a job, which one process does alone."""
_KNOWN: WeakKeyDictionary[Any, Peers] = WeakKeyDictionary()


def _here() -> Peers | None:
    return next(iter(_HERE.get() or ()), None)


@contextmanager
def _sharing(peers: tuple[Peers, ...]) -> Iterator[None]:
    token = _HERE.set(peers)
    try:
        yield
    finally:
        _HERE.reset(token)


def _peers() -> Peers:
    """Those of the running processes, made once for each time that they are brought together."""
    world = distributed.group.WORLD
    if world not in _KNOWN:
        _KNOWN[world] = Peers()
    return _KNOWN[world]


def _error(name: str, words: str, rank: int) -> Exception:
    """What another process raised, as an error of the same type where that is one that callers tell apart."""
    if name in ("ValueError", "TypeError", "RuntimeError"):
        kind = {"ValueError": ValueError, "TypeError": TypeError}.get(name, RuntimeError)
        return kind(f"{words} (in process {rank})")
    return RuntimeError(f"{name}: {words} (in process {rank})")


def shares(costs: Sequence[float], parts: int) -> list[list[int]]:
    """The numbers of the jobs of each part, the costliest given out first, each to the part with the least so far."""
    given: list[list[int]] = [[] for _ in range(parts)]
    loads = [0.0] * parts
    for number in sorted(range(len(costs)), key=lambda number: -costs[number]):
        part = loads.index(min(loads))
        given[part].append(number)
        loads[part] += costs[number]
    return [sorted(numbers) for numbers in given]


# What is sent: pickled, tensors as the bytes that they show and nothing of a larger storage


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        if type(value) is not Tensor:
            return None
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return value.device.type, value.dtype, tuple(value.shape), raw


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, kept: Any) -> Tensor:
        device, dtype, shape, raw = kept
        host = torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype, device="cpu")
        return host.reshape(shape).to(device)


def _packed(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


def _unpacked(raw: bytes) -> Any:
    return _Unpickler(io.BytesIO(raw)).load() if raw else None
