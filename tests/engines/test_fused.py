"""The coupled engine: weights in one piece for cuDNN, how much is simulated at once, and full precision inside."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import pytest
import torch
from torch import Tensor

import lstm_monitor as lm
from lstm_monitor.core.terms import GATES, Kind
from lstm_monitor.core.undisturbed import undisturbed
from lstm_monitor.engines import batch_size, fused
from lstm_monitor.engines.batch_size import or_on_host, stimuli_at_once, with_less
from lstm_monitor.engines.fused import release_buffers, run_fused, zero_state
from lstm_monitor.engines.loop_engine import run_loop

KINDS: tuple[Kind, ...] = ("lstm", "gru", "rnn_tanh", "rnn_relu")
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
MIB, GIB = 2**20, 2**30


def layer(kind: Kind, size: int = 5, features: int = 2, **options: Any) -> lm.LayerWeights:
    rows = len(GATES[kind]) * size
    shapes = ((rows, features), (rows, size), (rows,), (rows,))
    return lm.LayerWeights(kind, *(0.5 * torch.randn(shape, **options) for shape in shapes))


# --- weights in one piece: cuDNN itself is not here, its layout is stood in for by a plain one ----------------


@pytest.fixture
def flattened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, ...]]]:
    """The calls that lay weights out, as if the CPU were a GPU with cuDNN."""
    calls: list[tuple[Any, ...]] = []

    def flatten(parts: list[Tensor], *shape: Any) -> Tensor:
        whole, start = torch.empty(sum(part.numel() for part in parts), dtype=parts[0].dtype), 0
        for part in parts:
            part.set_(whole.untyped_storage(), start, part.shape, part.stride())
            start += part.numel()
        calls.append(shape)
        return whole

    release_buffers()
    monkeypatch.setattr(fused, "_for_cudnn", lambda like: True)
    monkeypatch.setattr(torch, "_cudnn_rnn_flatten_weight", flatten)
    yield calls
    release_buffers()


@pytest.mark.parametrize("kind", KINDS)
def test_runs_from_one_piece_give_the_same(kind: Kind, flattened: list[tuple[Any, ...]]) -> None:
    for _ in range(3):
        weights, inputs = layer(kind, dtype=torch.float64), torch.randn(7, 4, 2, dtype=torch.float64)
        state = tuple(torch.randn(4, 5, dtype=torch.float64) for _ in range(2 if kind == "lstm" else 1))
        hidden, last = run_fused(weights, inputs, state)
        wanted, ends, _ = run_loop(weights, inputs, state)
        torch.testing.assert_close(hidden, wanted)
        for found, end in zip(last, ends, strict=True):
            torch.testing.assert_close(found, end)
    mode = {"rnn_relu": 0, "rnn_tanh": 1, "lstm": 2, "gru": 3}[kind]
    assert flattened == [(4, 2, mode, 5, 0, 1, False, False)]  # once for all three runs


def test_buffers_are_one_piece_bounded_and_given_back(
    flattened: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = layer("lstm")
    with fused._one_piece(weights) as first, fused._one_piece(weights) as second:
        assert [part.data_ptr() for part in first] == [part.data_ptr() for part in second]
        assert len({part.untyped_storage().data_ptr() for part in first}) == 1
        assert torch.equal(first[1], weights.weight_hh)
        assert first[1].data_ptr() != weights.weight_hh.data_ptr()
    for size in range(1, 20):
        run_fused(layer("gru", size), torch.zeros(2, 1, 2), zero_state(layer("gru", size), 1))
    assert fused._buffers.cache_info().currsize == 8
    release_buffers()
    assert fused._buffers.cache_info().currsize == 0
    assert len(flattened) == 20
    monkeypatch.setattr(fused, "MOST_KEPT", 24)
    for _ in range(2):
        run_fused(weights, torch.zeros(2, 1, 2), zero_state(weights, 1))
    assert fused._buffers.cache_info().currsize == 0


def test_threads_and_inference_mode_do_not_meet_in_a_buffer(flattened: list[tuple[Any, ...]]) -> None:
    weights, inputs = layer("lstm"), torch.randn(3, 1, 2)
    with torch.inference_mode():
        run_fused(weights, inputs, zero_state(weights, 1))
    hidden, _ = run_fused(weights, inputs, zero_state(weights, 1))  # refilling an inference tensor would raise
    assert not hidden.is_inference()
    thread = threading.Thread(target=run_fused, args=(weights, inputs, zero_state(weights, 1)))
    thread.start()
    thread.join()
    assert len(flattened) == 2


def test_gradients_pass_where_they_are_asked_for(flattened: list[tuple[Any, ...]]) -> None:
    rows = (torch.randn(20, 2), torch.randn(20, 5), torch.randn(20), torch.randn(20))
    weights = lm.LayerWeights("lstm", *(part.requires_grad_() for part in rows))
    run_fused(weights, torch.randn(3, 1, 2), zero_state(weights, 1))[0].sum().backward()
    assert weights.weight_hh.grad is not None
    assert weights.weight_hh.grad.abs().sum() > 0
    assert flattened == []
    with torch.no_grad():
        hidden, _ = run_fused(weights, torch.randn(3, 1, 2), zero_state(weights, 1))
    assert not hidden.requires_grad
    assert not any(part.requires_grad for part in fused._buffers("lstm", 2, 5, torch.float32, CPU, 0, get_ident()))


def test_on_the_cpu_nothing_is_copied() -> None:
    weights = layer("gru")
    with fused._one_piece(weights) as parts:
        assert parts[1] is weights.weight_hh
    assert fused._buffers.cache_info().currsize == 0


# --- how much at once -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "steps", "free", "count"),
    [
        (128, 512, 80 * GIB, 16),
        (4096, 1024, 80 * GIB, 16),
        (4096, 1024, 4 * GIB, 8),  # 128 MiB each of 1 GiB
        (4096, 1024, 2 * GIB, 4),
        (4096, 1024, GIB, 2),
        (4096, 1024, GIB - 1, 1),
        (4096, 1024, 0, 1),
        (512, 512, 256 * MIB, 8),
    ],
)
def test_a_check_takes_a_quarter_of_what_is_free_on_a_gpu(size: int, steps: int, free: int, count: int) -> None:
    assert stimuli_at_once(CUDA, size, steps, torch.float32, free) == count
    assert stimuli_at_once(CUDA, size, steps, torch.float64, 2 * free) == count


@pytest.mark.parametrize(
    ("size", "steps", "count"), [(128, 512, 16), (2048, 1024, 16), (4096, 1024, 8), (4096, 1025, 4), (2**20, 2**20, 1)]
)
def test_on_the_host_responses_stay_within_a_bound(size: int, steps: int, count: int) -> None:
    assert stimuli_at_once(CPU, size, steps, torch.float32) == count
    assert stimuli_at_once(CPU, size, steps, torch.float64) == max(
        1, count // (1 if count == 16 and size < 2048 else 2)
    )
    assert stimuli_at_once(torch.device("mps"), size, steps, torch.float32) == count
    assert count == 1 or 2 * 4 * count * steps * size <= batch_size.HOST_MOST


@dataclass(frozen=True)
class Work:
    """Something with a tensor in it."""

    values: Tensor


ERRORS = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(("room", "tried"), [(16, [16]), (8, [16, 8])])
def test_half_as_many_at_once_where_a_gpu_is_full(error: Exception, room: int, tried: list[int]) -> None:
    asked: list[int] = []

    def simulate(count: int) -> str:
        asked.append(count)
        if count > room:
            raise error
        return "simulated"

    assert with_less(simulate, 16) == "simulated"
    assert asked == tried
    room = 0
    for at_once, more in ((16, [16, 8]), (1, [1])):
        asked.clear()
        with pytest.raises(type(error)):
            with_less(simulate, at_once)
        assert asked == more


@pytest.mark.parametrize("error", ERRORS)
def test_the_host_helps_out_with_one_message(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    batch_size._tell.cache_clear()
    asked: list[Work] = []

    def compute(work: Work) -> float:
        asked.append(work)
        if len(asked) % 2:
            raise error
        return float(work.values.sum())

    with caplog.at_level(logging.WARNING):
        assert [or_on_host(compute, Work(torch.arange(3.0))) for _ in range(2)] == [3, 3]
    (told,) = caplog.records
    assert told.message.startswith("lstm_monitor: the GPU has no memory left for a check")


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("no")])
def test_other_errors_are_not_tried_again(error: Exception) -> None:
    asked = []

    def fail(_: object) -> None:
        asked.append(1)
        raise error

    with pytest.raises(type(error)):
        with_less(fail, 16)
    with pytest.raises(type(error)):
        or_on_host(fail, Work(torch.ones(1)))
    assert len(asked) == 2


def layers_of(report: lm.Report) -> dict[str, Tensor]:
    (only,) = report.layers
    return {item.path: item.values for item in only.metrics.items} | {"trace": only.trace.change}


@pytest.mark.parametrize("at_once", [1, 2, 3, 4, 8])
def test_a_check_is_the_same_in_smaller_batches(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module, data = torch.nn.GRU(3, 6).double(), torch.randn(20, 4, 3, dtype=torch.float64)
    whole = layers_of(lm.characterize(module, data))
    monkeypatch.setattr(batch_size, "AT_ONCE", at_once)
    for path, values in layers_of(lm.characterize(module, data)).items():
        torch.testing.assert_close(values, whole[path], rtol=1e-9, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("failures", [1, 2])
def test_a_check_survives_a_full_gpu(failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module, data = torch.nn.GRU(3, 6).double(), torch.randn(20, 4, 3, dtype=torch.float64)
    whole, op, runs = layers_of(lm.characterize(module, data)), torch.gru, []

    def full(inputs: Tensor, *args: Any) -> Any:
        if inputs.shape[1] > 4 and len(runs) < failures:
            runs.append(inputs.shape[1])
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return op(inputs, *args)

    probe = lm.characterize(module, data)["l0"].horizon
    monkeypatch.setattr(torch, "gru", full)
    for path, values in layers_of(lm.characterize(module, data, horizon=probe)).items():
        torch.testing.assert_close(values, whole[path], rtol=1e-9, atol=1e-12, equal_nan=True)
    assert len(runs) == failures


# --- precision ------------------------------------------------------------------------------------------------


def switches() -> dict[str, Any]:
    """All that torch says of the precision of float32 products; "refused" where it will not say."""
    backends = torch.backends
    new = {
        name: owner.fp32_precision
        for name, owner in {
            "all": backends,
            "cudnn": backends.cudnn,
            "cudnn.rnn": backends.cudnn.rnn,
            "cudnn.conv": backends.cudnn.conv,
            "cuda.matmul": backends.cuda.matmul,
            "mkldnn": backends.mkldnn,
            "mkldnn.rnn": backends.mkldnn.rnn,
            "mkldnn.matmul": backends.mkldnn.matmul,
        }.items()
    }
    older: dict[str, Callable[[], Any]] = {
        "cudnn.allow_tf32": lambda: backends.cudnn.allow_tf32,
        "cuda.matmul.allow_tf32": lambda: backends.cuda.matmul.allow_tf32,
        "matmul precision": torch.get_float32_matmul_precision,
    }
    found: dict[str, Any] = dict.fromkeys(older, "refused")
    for name, read in older.items():
        with contextlib.suppress(RuntimeError):
            found[name] = read()
    return new | found


@pytest.fixture
def _put_back() -> Iterator[None]:
    before = switches()
    yield
    backends: Any = torch.backends
    backends.fp32_precision = before["all"]
    backends.cudnn.fp32_precision, backends.mkldnn.fp32_precision = before["cudnn"], before["mkldnn"]
    backends.cudnn.allow_tf32 = before["cudnn.allow_tf32"]
    torch.set_float32_matmul_precision(before["matmul precision"])
    for name in ("cudnn.rnn", "cudnn.conv", "cuda.matmul", "mkldnn.rnn", "mkldnn.matmul"):
        group, part = name.split(".")
        getattr(getattr(backends, group), part).fp32_precision = before[name]
    assert switches() == before


USER: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "cudnn.allow_tf32 off": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "cuda.matmul.allow_tf32 on": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "matmul tf32": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "rnn ieee": lambda: setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee"),
    "all tf32": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
}


@pytest.mark.usefixtures("_put_back")
@pytest.mark.parametrize("setting", USER)
def test_full_precision_whatever_the_user_set(setting: str) -> None:
    USER[setting]()
    before = switches()
    with undisturbed():
        inside = switches()
        for name in ("cudnn.rnn", "cuda.matmul", "mkldnn.rnn", "mkldnn.matmul"):
            assert inside[name] == "ieee", name
        with undisturbed():
            assert switches() == inside
        assert switches() == inside
    assert switches() == before


@pytest.mark.usefixtures("_put_back")
@pytest.mark.parametrize("setting", ["nothing", "high", "medium", "matmul tf32", "cudnn.allow_tf32 off"])
def test_what_reads_the_older_switches_inside_does_not_fail(setting: str) -> None:
    """torch refuses to read them where they disagree with the newer ones, in the user's forward too."""
    USER[setting]()
    with undisturbed():
        with torch.backends.cudnn.flags(enabled=False, allow_tf32=False):
            assert not torch.backends.cudnn.enabled
        assert torch.backends.cudnn.allow_tf32 is False
        assert torch.backends.cuda.matmul.allow_tf32 is False
        assert torch.get_float32_matmul_precision() == "highest"
