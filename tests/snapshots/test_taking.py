"""Snapshots: detached copies, no trace in the model, and the operating point that a layer really has."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence

from lstm_monitor import OperatingPoint, Snapshot, snapshot
from lstm_monitor.engines.fused import run_fused, zero_state

# torch says once that a projection runs without oneDNN, of the user's own module.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

STACKS: list[tuple[type[nn.RNNBase], dict[str, Any]]] = [
    (nn.LSTM, {}),
    (nn.GRU, {}),
    (nn.RNN, {"nonlinearity": "relu"}),
    (nn.LSTM, {"bidirectional": True}),
    (nn.GRU, {"bidirectional": True, "bias": False}),
    (nn.LSTM, {"proj_size": 2}),
    (nn.LSTM, {"proj_size": 2, "bidirectional": True}),
]
N, T, F, H = 5, 7, 3, 4


class PlantedError(RuntimeError):
    """A failure inside the user's forward."""


class Network(nn.Module):
    """What a trained model looks like: dropout, BatchNorm, random numbers and a counter in its forward."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(F)
        self.rnn = nn.LSTM(F, H, 2, batch_first=True, dropout=0.5)
        self.head = nn.Linear(H, 2)
        self.register_buffer("calls", torch.zeros(1))
        self.fails = fails

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        torch.rand(1), np.random.rand(), random.random()
        x = self.rnn(self.norm(x.transpose(1, 2)).transpose(1, 2))[0]
        if self.fails:
            raise PlantedError
        return self.head(x)


class Call(nn.Module):
    """A recurrent module called as a test wants."""

    def __init__(self, rnn: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.rnn = rnn
        self.call = call

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(self.rnn, *args, **kwargs)


class Holder(nn.Module):
    """A model that hands its input to its LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(F, H, batch_first=True)

    def forward(self, input: Any) -> Any:
        return self.rnn(input)


def data(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.normal(size=shape) * 0.7 + 0.4, dtype=dtype)


def built(kind: type[nn.Module] = nn.LSTM, *args: Any, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return kind(*(args or (F, H)), **options)


def network(fails: bool = False) -> Network:
    torch.manual_seed(0)
    return Network(fails)


def assert_point(point: OperatingPoint, samples: Tensor, tolerance: float = 1e-5) -> None:
    """`samples (..., F)` are all that a layer received."""
    flat = samples.detach().reshape(-1, samples.shape[-1]).double().numpy()
    np.testing.assert_allclose(point.mean.numpy(), flat.mean(0), atol=tolerance)
    np.testing.assert_allclose(point.covariance.numpy(), np.cov(flat.T, bias=True), atol=tolerance)
    assert point.source == "held_out"


def lowest(rnn: Any) -> Any:
    """A one-layer module with the weights of a stack's layer 0."""
    options = {name: getattr(rnn, name) for name in ("bias", "batch_first", "bidirectional", "proj_size")}
    extra = {"nonlinearity": rnn.nonlinearity} if isinstance(rnn, nn.RNN) else {}
    if not isinstance(rnn, nn.LSTM):
        options.pop("proj_size")
    single = type(rnn)(rnn.input_size, rnn.hidden_size, **options, **extra)
    single.load_state_dict({name: value for name, value in rnn.state_dict().items() if "_l0" in name})
    return single


def by_name(snaps: tuple[Snapshot, ...]) -> dict[str, Snapshot]:
    return {str(snap.key): snap for snap in snaps}


# --- detached copies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_copies_are_float32_unless_float64(dtype: torch.dtype, kept: torch.dtype) -> None:
    lstm = built(dtype=dtype, batch_first=True)
    (snap,) = snapshot(lstm, data(N, T, F, dtype=dtype))
    assert snap.held_out is not None
    assert snap.held_out_hidden is not None
    tensors = [snap.weights.weight_ih, snap.weights.bias_hh, snap.point.mean, snap.held_out.inputs]
    assert {t.dtype for t in [*tensors, snap.hidden_mean, snap.held_out_hidden]} == {kept}
    assert torch.equal(snap.weights.weight_ih, lstm.weight_ih_l0.to(kept))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_later_training_does_not_reach_a_snapshot(dtype: torch.dtype) -> None:
    lstm = built(dtype=dtype, batch_first=True, num_layers=2)
    held_out = data(N, T, F, dtype=dtype)
    snaps = snapshot(lstm, held_out)
    before = copy.deepcopy(snaps)
    with torch.no_grad():
        for tensor in (*lstm.parameters(), held_out):
            tensor.fill_(7.0)
    for snap, then in zip(snaps, before, strict=True):
        assert torch.equal(snap.weights.weight_hh, then.weights.weight_hh)
        assert torch.equal(snap.weights.bias_ih, then.weights.bias_ih)
        assert torch.equal(snap.held_out.inputs, then.held_out.inputs)  # type: ignore[union-attr]
        assert not snap.weights.weight_ih.requires_grad
        assert not snap.held_out_hidden.requires_grad  # type: ignore[union-attr]


def test_no_bias_is_a_zero_bias() -> None:
    (snap,) = snapshot(built(nn.GRU, F, H, bias=False))
    assert not snap.weights.bias_ih.any()
    assert snap.weights.bias_hh.shape == (3 * H,)


def test_without_data_the_operating_point_is_zero_and_one() -> None:
    (snap,) = snapshot(built())
    assert torch.equal(snap.point.mean, torch.zeros(F))
    assert torch.equal(snap.point.covariance, torch.eye(F))
    assert (snap.point.source, snap.point.length, snap.held_out) == ("default", None, None)
    assert torch.equal(snap.hidden_mean, torch.zeros(H))


def test_the_projection_is_folded_into_the_recurrence() -> None:
    lstm = built(nn.LSTM, F, H, proj_size=2, dtype=torch.float64)
    (snap,) = snapshot(lstm)
    torch.testing.assert_close(snap.weights.weight_hh, (lstm.weight_hh_l0 @ lstm.weight_hr_l0).detach())
    x = data(T, N, F, dtype=torch.float64)
    hidden, _ = run_fused(snap.weights, x, zero_state(snap.weights, N))
    torch.testing.assert_close(hidden @ lstm.weight_hr_l0.T, lstm(x)[0], rtol=0, atol=1e-14)


def test_selected_layers_come_alone_and_in_the_models_order() -> None:
    lstm = built(nn.LSTM, F, H, 3, batch_first=True)
    whole = by_name(snapshot(lstm, data(N, T, F)))
    (top,) = snapshot(lstm, data(N, T, F), layers="l2")
    torch.testing.assert_close(top.point.mean, whole["l2"].point.mean)
    assert list(whole) == ["l0", "l1", "l2"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["weight_hh_l1", "bias_ih_l0", "weight_hr_l1"])
def test_weights_that_are_not_finite_are_named(name: str, value: float) -> None:
    model = nn.ModuleDict({"rnn": built(nn.LSTM, F, H, 2, proj_size=2)})
    with torch.no_grad():
        model["rnn"].get_parameter(name).view(-1)[:2] = value
    with pytest.raises(ValueError, match=rf"rnn\.l\d: 2 of \d+ values of {name} are NaN or infinite"):
        snapshot(model)


# --- no trace in the model ---------------------------------------------------------------------------------


def marks(model: nn.Module) -> list[Any]:
    """All that a snapshot could change, in comparable values."""
    bits = [(name, id(v), v.numpy().tobytes()) for name, v in model.state_dict(keep_vars=True).items() if not grad(v)]
    bits += [(name, id(v), v.detach().numpy().tobytes()) for name, v in model.named_parameters()]
    grads = [(v.requires_grad, None if v.grad is None else v.grad.numpy().tobytes()) for v in model.parameters()]
    hooks = [{n: len(v) for n, v in vars(m).items() if "hook" in n and hasattr(v, "__len__")} for m in model.modules()]
    states = [torch.get_rng_state().tolist(), repr(np.random.get_state(legacy=False)), random.getstate()]
    return [bits, grads, hooks, [m.training for m in model.modules()], states]


def grad(value: Tensor) -> bool:
    return isinstance(value, nn.Parameter)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_and_the_random_states_are_as_before(fails: bool) -> None:
    model = network(fails)
    model.norm.eval()
    model.head.weight.requires_grad_(False)
    model.rnn.weight_hh_l0.grad = torch.ones(4 * H, H)
    before = marks(model)
    if fails:
        with pytest.raises(ValueError, match="PlantedError"):
            snapshot(model, data(N, T, F))
    else:
        snapshot(model, data(N, T, F))
    for then, now in zip(before, marks(model), strict=True):
        assert now == then


@pytest.mark.parametrize("plant", [lambda m: torch.rand(1), lambda m: m.eval(), lambda m: m.norm(data(N, F))])
def test_a_trace_would_be_seen(plant: Callable[[Any], Any]) -> None:
    model = network()
    before = marks(model)
    plant(model)
    assert marks(model) != before


def test_in_eval_mode_dropout_takes_no_part() -> None:
    model = network()
    first, second = (snapshot(model, data(N, T, F))[1] for _ in range(2))
    assert torch.equal(first.point.mean, second.point.mean)


def test_inside_autocast_and_inference_mode_the_numbers_are_the_same() -> None:
    lstm = built(batch_first=True)
    (plain,) = snapshot(lstm, data(N, T, F))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        (inside,) = snapshot(lstm, data(N, T, F))
    assert torch.equal(plain.held_out_hidden, inside.held_out_hidden)  # type: ignore[arg-type]
    assert not inside.weights.weight_ih.is_inference()


# --- the operating point -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(("kind", "options"), STACKS)
def test_every_layer_has_the_statistics_of_what_it_receives(
    kind: type[nn.RNNBase], options: dict[str, Any], batch_first: bool
) -> None:
    rnn = built(kind, F, H, 2, batch_first=batch_first, **options)
    x = data(N, T, F)
    given = x if batch_first else x.transpose(0, 1)
    snaps = by_name(snapshot(rnn, given))
    between = lowest(rnn)(given)[0]
    for name, snap in snaps.items():
        assert_point(snap.point, x if name.startswith("l0") else between)
        assert snap.point.length == T


def test_it_is_the_layers_input_and_not_the_models() -> None:
    model = nn.Sequential(nn.Linear(2, F), nn.Tanh(), built(batch_first=True))
    (snap,) = snapshot(model, data(N, T, 2))
    assert_point(snap.point, model[:2](data(N, T, 2)))


def test_a_reverse_direction_reads_backwards() -> None:
    forward, reverse = snapshot(built(bidirectional=True, batch_first=True), data(N, T, F))
    assert torch.equal(forward.held_out.inputs.flip(1), reverse.held_out.inputs)  # type: ignore[union-attr]


@pytest.mark.parametrize(("kind", "options"), STACKS)
def test_packed_sequences_unsorted(kind: type[nn.RNNBase], options: dict[str, Any]) -> None:
    rnn = built(kind, F, H, 2, batch_first=True, **options)
    lengths = [3, 7, 5, 1, 6]
    x = data(N, T, F)
    packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
    snaps = by_name(snapshot(rnn, packed))
    between = lowest(rnn)(packed)[0]
    for name, snap in snaps.items():
        assert_point(snap.point, (packed if name.startswith("l0") else between).data)
        assert snap.held_out is not None
        assert snap.held_out.lengths is not None
        assert snap.held_out.lengths.tolist() == lengths
        assert snap.held_out.mask.sum(1).tolist() == lengths


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("kind", "options"), STACKS)
def test_given_states_are_taken_by_every_layer_and_direction(
    kind: type[nn.RNNBase], options: dict[str, Any], packed: bool
) -> None:
    rnn = built(kind, F, H, 2, batch_first=True, **options)
    rows = 2 * (1 + rnn.bidirectional)
    h0, c0 = data(rows, N, rnn.proj_size or H, seed=1), data(rows, N, H, seed=2)
    x: Any = data(N, T, F)
    if packed:
        x = pack_padded_sequence(x, torch.tensor([3, 7, 5, 1, 6]), batch_first=True, enforce_sorted=False)
    snaps = snapshot(rnn, (x, (h0, c0) if kind is nn.LSTM else h0))
    for row, snap in enumerate(snaps):
        assert snap.held_out is not None
        start = snap.held_out.h0 if snap.weights.weight_hr is None else snap.held_out.h0 @ snap.weights.weight_hr.T
        torch.testing.assert_close(start, h0[row], rtol=0, atol=1e-5)
        if kind is nn.LSTM:
            assert torch.equal(snap.held_out.c0, c0[row])  # type: ignore[arg-type]
    states: Any = (h0[: rows // 2], c0[: rows // 2]) if kind is nn.LSTM else h0[: rows // 2]
    between = lowest(rnn)(x, states)[0]
    assert_point(snaps[-1].point, between.data if packed else between)


def test_an_unbatched_sequence_is_a_batch_of_one() -> None:
    lstm = built(num_layers=2)
    x, state = data(T, F), (data(2, H, seed=1), data(2, H, seed=2))
    alone = snapshot(lstm, (x, state))
    batched = snapshot(lstm, (x[:, None], tuple(s[:, None] for s in state)))
    for one, other in zip(alone, batched, strict=True):
        torch.testing.assert_close(one.held_out_hidden, other.held_out_hidden)
    assert_point(alone[0].point, x)


@pytest.mark.parametrize("keywords", [("input",), ("input", "hx"), ("hx",)])
def test_keyword_calls(keywords: tuple[str, ...]) -> None:
    x, state = data(N, T, F), (data(1, N, H, seed=1), data(1, N, H, seed=2))

    def call(rnn: nn.LSTM, x: Tensor) -> Any:
        values = {"input": x, "hx": state}
        return rnn(*[v for n, v in values.items() if n not in keywords], **{n: values[n] for n in keywords})

    if keywords == ("input",):
        call = lambda rnn, x: rnn(input=x, hx=state)[0]  # noqa: E731
    (snap,) = snapshot(Call(built(batch_first=True), call), x)
    assert_point(snap.point, x)
    assert torch.equal(snap.held_out.h0, state[0][0])  # type: ignore[union-attr, arg-type]


def over_time(cell: nn.Module, x: Tensor, state: Any = None) -> Any:
    """The last state; x (N, T, F), or (1, T, F) step by step without a batch where the state has none."""
    single = state is not None and (state[0] if isinstance(state, tuple) else state).dim() == 1
    for x_t in x[0] if single else x.unbind(1):
        state = cell(x_t, state)
    return state


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
@pytest.mark.parametrize("given", [False, True])
def test_a_loop_over_a_cell_is_one_sequence(kind: type[nn.Module], given: bool) -> None:
    model = Call(built(kind), over_time)
    x, h0, c0 = data(N, T, F), data(N, H, seed=1), data(N, H, seed=2)
    state = ((h0, c0) if kind is nn.LSTMCell else h0) if given else None
    (snap,) = snapshot(model, (x, state))
    assert snap.held_out is not None
    assert torch.equal(snap.held_out.inputs, x)
    assert (snap.held_out.h0 is not None) == given
    assert not given or torch.equal(snap.held_out.h0, h0)  # type: ignore[arg-type]
    assert_point(snap.point, x)
    last = model(x, state)
    expected = last[0] if kind is nn.LSTMCell else last
    torch.testing.assert_close(snap.held_out_hidden[-1], expected.detach())  # type: ignore[index]


def test_an_unbatched_cell() -> None:
    x, state = data(T, F), (data(H, seed=1), data(H, seed=2))
    (snap,) = snapshot(Call(built(nn.LSTMCell), lambda cell, x: over_time(cell, x[None], state)), x)
    assert snap.held_out is not None
    assert torch.equal(snap.held_out.inputs, x[None])
    assert torch.equal(snap.held_out.c0, state[1][None])  # type: ignore[arg-type]


def rollout(rnn: nn.RNNBase, x: Tensor, chunk: int = 1) -> Any:
    state = None
    for part in x.split(chunk, dim=1):
        out, state = rnn(part, state)
    return out


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize(("kind", "options"), [entry for entry in STACKS if not entry[1].get("bidirectional")])
def test_a_rollout_that_carries_its_state_is_one_sequence(
    kind: type[nn.RNNBase], options: dict[str, Any], chunk: int
) -> None:
    rnn = built(kind, F, H, 2, batch_first=True, **options)
    x = data(N, T, F)
    joined = snapshot(Call(rnn, lambda rnn, x: rollout(rnn, x, chunk)), x)
    for one, other in zip(joined, snapshot(rnn, x), strict=True):
        torch.testing.assert_close(one.held_out_hidden, other.held_out_hidden, rtol=0, atol=1e-6)
        torch.testing.assert_close(one.point.covariance, other.point.covariance, rtol=0, atol=1e-6)
        assert one.point.length == T


def test_calls_that_start_anew_are_sequences_of_their_own() -> None:
    x = data(N, T, F)
    (snap,) = snapshot(Call(built(batch_first=True), lambda rnn, x: (rnn(x), rnn(x[:, :3]))), x)
    assert snap.held_out is not None
    assert snap.held_out.inputs.shape == (2 * N, T, F)
    assert snap.held_out.mask.sum(1).tolist() == [T] * N + [3] * N


# --- how held-out data is given ----------------------------------------------------------------------------

FORMS: list[tuple[str, Callable[[Tensor], Any], dict[str, Any]]] = [
    ("tensor", lambda x: x, {}),
    ("tuple", lambda x: (x, None), {}),
    ("dict", lambda x: {"hx": None, "input": x}, {}),
    ("list", lambda x: [x[:2], x[2:]], {}),
    ("list of tuples", lambda x: [(x[:2],), (x[2:], None)], {}),
    ("list of dicts", lambda x: [{"input": x}], {}),
    ("packed", lambda x: pack_padded_sequence(x, torch.full((N,), T), batch_first=True), {}),
    ("forward", lambda x: {"text": "a label", "nested": [x]}, {"forward": lambda m, b: m(b["nested"][0])}),
    ("forward on each", lambda x: [(x[:3], 1), (x[3:], 2)], {"forward": lambda m, batch: m(batch[0])}),
]


@pytest.mark.parametrize(("give", "options"), [form[1:] for form in FORMS], ids=[form[0] for form in FORMS])
def test_every_form_of_held_out_data(give: Callable[[Tensor], Any], options: dict[str, Any]) -> None:
    (snap,) = snapshot(built(batch_first=True), give(data(N, T, F)), **options)
    assert snap.held_out is not None
    assert torch.equal(snap.held_out.inputs, data(N, T, F))
    assert_point(snap.point, data(N, T, F))


LENGTHS = [3, 7, 5, 1, 6]
VALID = torch.arange(T) < torch.tensor(LENGTHS)[:, None]


@pytest.mark.parametrize(
    "options",
    [
        {"lengths": LENGTHS},
        {"lengths": torch.tensor(LENGTHS)},
        {"mask": VALID},
        {"mask": VALID.int().tolist()},
    ],
)
@pytest.mark.parametrize("rows", [None, 2])
def test_padding_is_kept_out_of_every_statistic(options: dict[str, Any], rows: int | None) -> None:
    gru = built(nn.GRU, F, H, 2, batch_first=True)
    x = data(N, T, F)
    unpadded = [row[:length] for row, length in zip(x, LENGTHS, strict=True)]
    padded = torch.where(VALID[..., None], x, torch.tensor(100.0))
    held_out: Any = padded if rows is None else [padded[:rows], padded[rows:]]
    if rows is not None:
        options = {name: [value[:rows], value[rows:]] for name, value in options.items()}
    lower, upper = snapshot(gru, held_out, **options)
    between = torch.cat([lowest(gru)(row[None])[0][0] for row in unpadded])
    assert_point(lower.point, torch.cat(unpadded))
    assert_point(upper.point, between)
    torch.testing.assert_close(lower.hidden_mean, between.mean(0).detach(), rtol=0, atol=1e-6)
    assert lower.point.length == max(LENGTHS)


def test_padding_without_lengths_would_be_counted() -> None:
    padded = torch.where(VALID[..., None], data(N, T, F), torch.tensor(100.0))
    (snap,) = snapshot(built(batch_first=True), padded)
    assert snap.point.mean.min() > 10


def test_a_mask_reaches_a_reverse_direction_in_its_own_order() -> None:
    x = torch.where(VALID[..., None], data(N, T, F), torch.tensor(100.0))
    for snap in snapshot(built(bidirectional=True, batch_first=True), x, mask=VALID):
        assert_point(snap.point, data(N, T, F)[VALID])


def test_a_mask_covers_the_steps_of_a_loop_over_a_cell() -> None:
    x = torch.where(VALID[..., None], data(N, T, F), torch.tensor(100.0))
    (snap,) = snapshot(Call(built(nn.GRUCell), over_time), x, lengths=LENGTHS)
    assert_point(snap.point, data(N, T, F)[VALID])


def test_long_and_many_sequences_are_cut_to_a_sample() -> None:
    (snap,) = snapshot(built(batch_first=True), data(6, 1500, F))
    assert snap.held_out is not None
    assert snap.held_out.inputs.shape == (4, 1024, F)
    (snap,) = snapshot(built(batch_first=True), [data(100, 64, F), data(100, 64, F)])
    assert snap.held_out is not None
    assert snap.held_out.inputs.shape == (16, 64, F)


@pytest.mark.parametrize("chunk", [1, 1000])
def test_a_long_rollout_is_cut_to_its_first_steps_with_its_mask(chunk: int) -> None:
    x = data(2, 1500, F)
    x[:, 900:] = 100.0
    model = Call(built(nn.GRU, batch_first=True), lambda rnn, x: rollout(rnn, x, chunk))
    (snap,) = snapshot(model, x, lengths=[900, 900])
    assert snap.held_out is not None
    assert torch.equal(snap.held_out.inputs, x[:, :1024])
    assert_point(snap.point, x[:, :900])


NAN, INF = data(N, T, F), data(N, T, F)
NAN[0, 0, 0], INF[1, 2, :2] = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("held_out", "options", "words"),
    [
        (data(N, T, 5), {}, r"held_out: .* shapes \(5, 7, 5\).*Features: rnn\.l0 reads 3"),
        (data(2, N, T, F), {}, r"held_out: .* shapes \(2, 5, 7, 3\)"),
        (data(T), {}, r"held_out: .* shapes \(7,\)"),
        (torch.zeros(0, T, F), {}, r"held_out is empty: .* shape \(0, 7, 3\)"),
        (torch.zeros(N, 0, F), {}, r"held_out is empty: .* shape \(5, 0, 3\)"),
        ([], {}, r"held_out=\[\] is empty"),
        (NAN, {}, "held_out holds 1 values that are NaN or infinite"),
        (INF, {}, "held_out holds 2 values that are NaN or infinite"),
        ([data(N, T, F), (NAN,)], {}, "held_out holds 1 values that are NaN"),
        ({"input": {"deep": [INF]}}, {}, "held_out holds 2 values"),
        ((data(N, T, F), torch.zeros(N)), {}, r"held_out: .*leave targets out, or give forward="),
        (data(N, T, F), {"lengths": LENGTHS, "mask": VALID}, "lengths= and mask= were both given"),
        (data(N, T, F), {"lengths": [3, 7, 5, 0, 6]}, "lengths .* at least 1"),
        (data(N, T, F), {"lengths": LENGTHS[:3]}, r"lengths is for 3 sequences, but held_out has shapes \(5, 7, 3\)"),
        (data(N, T, F), {"mask": VALID[:, :4]}, r"mask .* has shape \(5, 4\).*received 5 sequences of 7 steps"),
        (data(N, T, F), {"mask": torch.zeros(N, T)}, "mask .* leaves no step"),
        ([data(N, T, F)] * 2, {"lengths": [LENGTHS]}, "lengths has 1 entries for 2 held-out batches"),
    ],
)
def test_bad_held_out_data_has_its_own_error(held_out: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        snapshot(Holder(), held_out, **options)


# --- the reader of a layer ---------------------------------------------------------------------------------


def test_outgoing_weights_are_those_of_the_module_that_reads_the_layer() -> None:
    model = nn.ModuleDict({"rnn": built(num_layers=2, bidirectional=True), "head": nn.Linear(2 * H, 5)})
    snaps = by_name(snapshot(model))
    rnn, head = model["rnn"], model["head"]
    above = torch.cat([rnn.weight_ih_l1, rnn.weight_ih_l1_reverse]).detach()
    torch.testing.assert_close(snaps["rnn.l0"].outgoing, above[:, :H].norm(dim=0))
    torch.testing.assert_close(snaps["rnn.l0_reverse"].outgoing, above[:, H:].norm(dim=0))
    torch.testing.assert_close(snaps["rnn.l1_reverse"].outgoing, head.weight.detach()[:, H:].norm(dim=0))
    assert (snaps["rnn.l0"].reader, snaps["rnn.l1"].reader) == ("the layer above, l1", "head")


def test_outgoing_weights_of_units_before_a_projection() -> None:
    model = nn.ModuleDict({"rnn": built(proj_size=2), "head": nn.Linear(2, 5)})
    (snap,) = snapshot(model)
    expected = (model["head"].weight @ model["rnn"].weight_hr_l0).norm(dim=0)
    torch.testing.assert_close(snap.outgoing, expected.detach())


@pytest.mark.parametrize(
    "reader",
    [
        lambda: nn.Linear(9, 2),
        lambda: nn.LazyLinear(2),
        lambda: parametrizations.weight_norm(nn.LSTM(9, H), "weight_ih_l0"),
        lambda: nn.RNNCellBase(9, H, True, 4),
    ],
)
def test_readers_that_cannot_be_read_are_passed_over(reader: Callable[[], nn.Module]) -> None:
    (snap,) = snapshot(nn.ModuleDict({"rnn": built(), "odd": reader()}), layers="rnn.l0")
    assert (snap.outgoing, snap.reader) == (None, None)
    (snap,) = snapshot(nn.ModuleDict({"rnn": built(), "odd": reader(), "head": nn.Linear(H, 2)}), layers="rnn.l0")
    assert snap.reader == "head"


def test_a_weight_normed_reader_is_read() -> None:
    odd = parametrizations.weight_norm(nn.LSTM(H, 6), "weight_ih_l0")
    (snap,) = snapshot(nn.ModuleDict({"rnn": built(), "odd": odd}), layers="rnn.l0")
    torch.testing.assert_close(snap.outgoing, odd.weight_ih_l0.detach().norm(dim=0))


def test_a_mask_for_other_steps_than_a_layer_receives_is_refused() -> None:
    pooled = nn.Sequential()
    pooled.rnn = built(batch_first=True)
    x = data(4, 40, F)

    def forward(model: nn.Module, x: torch.Tensor) -> None:
        model.rnn(nn.functional.avg_pool1d(x.transpose(1, 2), 2).transpose(1, 2))

    with pytest.raises(ValueError, match=r"a layer received 4 sequences of 20 steps, so it is unknown"):
        snapshot(pooled, x, forward=forward, lengths=[20, 40, 9, 30])
    with pytest.raises(ValueError, match="mask has shape"):
        snapshot(built(batch_first=True), x, mask=torch.ones(4))
    with pytest.raises(ValueError, match="lengths holds 41, but the held-out sequences have 40 steps"):
        snapshot(built(batch_first=True), x, lengths=[41, 1, 1, 1])
    with pytest.raises(ValueError, match="without held_out="):
        snapshot(built(batch_first=True), lengths=[3])


def test_a_long_loop_of_a_cell_keeps_fewer_sequences() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(F, 5)

        def forward(self, x: torch.Tensor) -> None:
            h = None
            for step in x.unbind(1):
                h = self.cell(step, h)

    x = data(200, 300, F)
    (snap,) = snapshot(Loop(), x, max_steps=3000)
    assert snap.held_out is not None
    assert torch.equal(snap.held_out.inputs, x[:10])
