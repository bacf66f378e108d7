"""Sensitivity, Taylor and first-order scores: equal to their definitions by naive unrolls, with errors that help."""

from __future__ import annotations

import itertools
import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from lstm_monitor.core.terms import LayerKey
from lstm_monitor.core.undisturbed import undisturbed
from lstm_monitor.importance.replay.stages import whole, without
from lstm_monitor.importance.sensitivity.scores import (
    first_order,
    loss_changes,
    output_changes,
    output_sensitivity,
    sensitivities,
    taylor,
)
from lstm_monitor.layers.finding import find_layers
from lstm_monitor.snapshots.runs import Run, runs_of
from tests.helpers.unrolls import Seen, key_of, unrolled

KINDS = ("LSTM", "GRU", "RNN")


class Net(nn.Module):
    """Two layers, both directions; two or more values a sequence, or a step."""

    def __init__(self, kind: str = "LSTM", layers: int = 2, both: bool = True, size: int = 2) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(3, 4, layers, bidirectional=both, batch_first=True)
        self.readout = nn.Linear(4 * (1 + both), size)
        self.each = False

    def forward(self, x: Any) -> Tensor:
        out, final = self.rnn(x)
        if isinstance(x, Tensor):
            return self.readout(out if self.each else out.mean(1)).tanh()
        final = final[0] if isinstance(final, tuple) else final
        return self.readout(torch.cat([*final[-1 - self.rnn.bidirectional :]], 1)).tanh()


def net(*args: Any, **options: Any) -> Net:
    return Net(*args, **options).double().eval()


def batch(count: int = 3, steps: int = 5) -> Tensor:
    return torch.randn(count, steps, 3, dtype=torch.float64)


class Oracle:
    """Every hidden state of a run of an unrolled copy, and sums over them, by plain Python."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        run: Callable[[nn.Module, Any], Tensor] | None = None,
        counts: Callable[[Seen], bool] | None = None,
    ) -> None:
        twin, made = unrolled(model, "rnn")
        self.output = twin(inputs) if run is None else run(twin, inputs)
        self.states: dict[str, list[Seen]] = defaultdict(list)
        for seen in made["rnn"].seen:
            if counts is None or counts(seen):
                self.states[key_of("rnn", seen)].append(seen)

    def means(self, key: str) -> dict[int, Tensor]:
        by_step: dict[int, list[Tensor]] = defaultdict(list)
        for seen in self.states[key]:
            by_step[seen.read].append(seen.value)
        overall = torch.stack([seen.value for seen in self.states[key]]).mean(0)
        return {read: torch.stack(values).mean(0) if len(values) > 1 else overall for read, values in by_step.items()}

    def sums(self, key: str, vector: Tensor, centred: bool, absolute: bool = False) -> Tensor:
        """``(N, H)``."""
        states, means = self.states[key], self.means(key)
        wanted = [seen.nudge for seen in states]
        grads = torch.autograd.grad(self.output, wanted, vector, retain_graph=True, allow_unused=True)
        total: dict[int, Any] = defaultdict(lambda: 0)
        for seen, grad in zip(states, grads, strict=True):
            value = seen.value - means[seen.read] if centred else seen.value
            product = value * (torch.zeros_like(value) if grad is None else grad)
            total[seen.sequence] = total[seen.sequence] + (product.abs() if absolute else product)
        return torch.stack([total[n] for n in sorted(total)])

    def sensitivity(self, key: str, centred: bool) -> Tensor:
        """Over every vector of +-1 that a sequence can have."""
        count, size = self.output.shape
        squares = [
            self.sums(key, torch.tensor([pattern] * count).double(), centred).square()
            for pattern in itertools.product((-1.0, 1.0), repeat=size)
        ]
        return torch.stack(squares).mean((0, 1)).sqrt()


@pytest.mark.sweep
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_definition_on_tensors_and_packed_sequences(kind: str, size: int, centred: bool) -> None:
    model, x = net(kind, size=size), batch()
    lengths = torch.tensor([2, 5, 4])
    for inputs in (x, pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)):
        oracle = Oracle(model, inputs)
        scores = output_sensitivity(model, inputs, centred=centred)
        assert list(scores) == ["rnn.l0", "rnn.l0_reverse", "rnn.l1", "rnn.l1_reverse"]
        for key, values in scores.items():
            torch.testing.assert_close(values, oracle.sensitivity(key, centred), rtol=1e-8, atol=1e-13)


def test_drawn_vectors_come_near_the_exact_value_and_are_the_same_each_time() -> None:
    model, x = net(size=20, layers=1), batch(6, 4)
    exact = output_sensitivity(model, x, vectors=20)["rnn.l0"]
    many = output_sensitivity(model, x, vectors=19, seed=5)["rnn.l0"]
    torch.testing.assert_close(many, exact, rtol=0.5, atol=0)
    assert torch.equal(many, output_sensitivity(model, x, vectors=19, seed=5)["rnn.l0"])
    assert not torch.equal(many, output_sensitivity(model, x, vectors=19, seed=6)["rnn.l0"])
    errors = [output_sensitivity(model, x, vectors=2, seed=seed)["rnn.l0"].square() for seed in range(200)]
    torch.testing.assert_close(torch.stack(errors).mean(0), exact.square(), rtol=0.1, atol=0)


def test_padding_that_a_mask_leaves_out_changes_nothing() -> None:
    model, lengths = net(both=False), torch.tensor([2, 5, 4])
    model.each = True
    short = batch()
    scores = output_sensitivity(model, short, lengths=lengths, vectors=30)
    filled = short.clone()
    for n, length in enumerate(lengths):
        filled[n, length:] = 7.0
    mask = torch.arange(5) < lengths[:, None]
    for key, values in output_sensitivity(model, filled, mask=mask, vectors=30).items():
        torch.testing.assert_close(values, scores[key], rtol=1e-10, atol=0)
    for key, values in output_sensitivity(model, filled, vectors=30).items():
        assert not torch.allclose(values, scores[key])


@pytest.mark.parametrize("centred", [True, False])
def test_a_mask_over_both_directions(centred: bool) -> None:
    model, x = net(), batch(4)
    mask = torch.arange(5) < torch.tensor([2, 5, 4, 3])[:, None]
    mask[1, 0] = False

    def counts(seen: Seen) -> bool:
        return bool(mask[seen.sequence, 4 - seen.read if seen.layer.endswith("reverse") else seen.read])

    oracle = Oracle(model, x, counts=counts)
    for key, values in output_sensitivity(model, x, mask=mask, centred=centred).items():
        torch.testing.assert_close(values, oracle.sensitivity(key, centred), rtol=1e-8, atol=1e-13)


def test_a_mask_over_cells_that_are_called_step_by_step() -> None:
    class Steps(nn.Module):
        def __init__(self, rnn: nn.LSTM) -> None:
            super().__init__()
            self.cell = nn.LSTMCell(3, 4)
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(self.cell, name).data = getattr(rnn, f"{name}_l0").data

        def forward(self, x: Tensor) -> Tensor:
            state, out = None, []
            for step in x.unbind(1):
                state = self.cell(step, state)
                out.append(state[0])
            return torch.stack(out, 1)

    rnn = nn.LSTM(3, 4, batch_first=True).double()
    x, lengths = batch(), torch.tensor([2, 5, 4])
    whole_scores = output_sensitivity(rnn, x, lengths=lengths, output=lambda result: result[0])
    step_scores = output_sensitivity(Steps(rnn).double(), x, lengths=lengths)
    torch.testing.assert_close(step_scores["cell"], whole_scores["l0"], rtol=1e-10, atol=0)


def test_a_batch_cut_in_two_gives_the_same() -> None:
    model, x = net(), batch(6)
    together, apart = output_sensitivity(model, x), output_sensitivity(model, [x[:4], x[4:]])
    for key, values in together.items():
        torch.testing.assert_close(apart[key], values, rtol=1e-10, atol=0)


def test_few_sequences_are_followed_and_the_means_are_over_all() -> None:
    model, x = net(layers=1), batch(40)
    oracle = Oracle(model, x)
    scores = output_sensitivity(model, x, max_steps=30)
    sums = [oracle.sums("rnn.l0", torch.eye(2).double()[d].expand(40, 2) * math.sqrt(2), True)[:6] for d in range(2)]
    torch.testing.assert_close(scores["rnn.l0"], torch.stack(sums).square().mean((0, 1)).sqrt(), rtol=1e-8, atol=0)
    runs = [Run(lambda: pytest.fail("a batch too many was run"))]
    with undisturbed(model):
        enough = sensitivities(model, find_layers(model), [*runs_of(model, find_layers(model), x), *runs], max_steps=30)
    assert torch.equal(enough[LayerKey("rnn", 0)], scores["rnn.l0"])


@pytest.mark.parametrize("centred", [True, False])
def test_few_packed_sequences_are_followed_in_both_directions(centred: bool) -> None:
    model, lengths = net(size=1), torch.tensor([2, 5, 4, 3, 5, 1, 5, 4, 2])
    inputs = pack_padded_sequence(batch(9), lengths, batch_first=True, enforce_sorted=False)
    oracle, scores = Oracle(model, inputs), output_sensitivity(model, inputs, max_steps=1, centred=centred)
    for key, values in scores.items():
        sums = oracle.sums(key, torch.ones(9, 1).double(), centred)[:4]
        torch.testing.assert_close(values, sums.square().mean(0).sqrt(), rtol=1e-8, atol=1e-13)


def test_batches_that_do_not_reach_the_layers_are_passed_over() -> None:
    model, x = net(), batch()
    forward = lambda model, x: model(x) if x.shape[1] > 1 else model.readout(x.new_ones(3, 8))  # noqa: E731
    scores = output_sensitivity(model, [batch(steps=1), x], forward=forward)
    torch.testing.assert_close(scores, output_sensitivity(model, x))


def test_one_sequence_is_held_against_its_mean_over_time() -> None:
    model, x = net(layers=1), batch(1)
    torch.testing.assert_close(
        output_sensitivity(model, x)["rnn.l0"], Oracle(model, x).sensitivity("rnn.l0", True), rtol=1e-8, atol=0
    )
    assert (output_sensitivity(model, x)["rnn.l0"] > 0).all()
    alone = nn.LSTM(3, 4)
    assert (output_sensitivity(alone, torch.randn(6, 3))["l0"] > 0).all()


def test_layers_that_the_output_does_not_need_are_undefined() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.LSTM(3, 4), nn.GRU(3, 5)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.used(x)[0], self.idle(x)[0]

    model, x = Two(), torch.randn(5, 3, 3)
    scores = output_sensitivity(model, x)
    assert scores["used.l0"].isfinite().all()
    assert scores["idle.l0"].isnan().all()
    assert scores["idle.l0"].shape == (5,)
    assert output_sensitivity(model, x, output=lambda result: result[1])["idle.l0"].isfinite().all()
    with pytest.raises(ValueError, match="the result does not depend on idle.l0; give output="):
        output_sensitivity(model, x, layers="idle.*")
    rows = first_order(model, x, lambda model, x: model(x)[0].mean())
    assert rows["idle.l0"].isnan().all()
    assert rows["idle.l0"].shape == (3, 5)


# Losses


def losses(model: nn.Module, x: Any) -> Tensor:
    return model(x).square().mean(1)


def mean_loss(model: nn.Module, x: Any) -> Tensor:
    return losses(model, x).mean()


@pytest.mark.parametrize("loss", [losses, mean_loss])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_by_a_loss(kind: str, loss: Any) -> None:
    model, x = net(kind), batch()
    oracle = Oracle(model, x, losses)
    strong, rows = taylor(model, x, loss), first_order(model, x, loss)
    for key in strong:
        ones = torch.ones(3, dtype=torch.float64)
        torch.testing.assert_close(rows[key], oracle.sums(key, ones, False), rtol=1e-8, atol=1e-14)
        torch.testing.assert_close(strong[key], oracle.sums(key, ones, False, True).mean(0), rtol=1e-8, atol=1e-14)


def test_first_order_scores_are_the_weight_gradient_form() -> None:
    """performance.md, C: ``sum(W_hh[:, k] * grad) + sum(W_out[:, k] * grad)``, by torch's own backward pass."""
    model, x = net(layers=1, both=False), batch(8, 6)
    mean_loss(model, x).backward()
    expected = sum((weight.detach() * weight.grad).sum(0) for weight in (model.rnn.weight_hh_l0, model.readout.weight))
    got = first_order(model, x, losses)["rnn.l0"]
    assert got.shape == (8, 4)
    torch.testing.assert_close(got.mean(0), expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_changes_of_the_output_are_exact_where_nothing_recurs_and_the_readout_is_linear(kind: str) -> None:
    model, x = net(kind, layers=1, both=False), batch(7)
    model.readout.forward = lambda out: out @ model.readout.weight.T  # type: ignore[method-assign]
    model.rnn.weight_hh_l0.data.zero_()
    if kind == "GRU":  # its update gate leaks the state into the next step
        model.rnn.weight_ih_l0.data[4:8] = 0
        model.rnn.bias_ih_l0.data[4:8] = -200
    model.forward = lambda x: model.readout(model.rnn(x)[0].mean(1))  # type: ignore[method-assign]
    layers = find_layers(model)
    with undisturbed(model):
        rows = output_changes(model, layers, runs_of(model, layers, x))[LayerKey("rnn", 0)]
    hidden = model.rnn(x)[0].mean(1).detach()
    expected = (hidden[:, :, None] * model.readout.weight.T).square().mean(2)
    torch.testing.assert_close(rows, expected.detach(), rtol=1e-9, atol=0)


def test_runs_with_a_score_give_the_output_and_the_loss() -> None:
    model, x = net(), batch()
    layers = find_layers(model)

    def step() -> dict[str, Tensor]:
        return {"loss": model(x).square().mean(1), "other": torch.zeros(1)}

    scored = [Run(step, score=lambda result: result["loss"])]
    with undisturbed(model):
        by_step, plain = (sensitivities(model, layers, runs) for runs in (scored, runs_of(model, layers, x)))
        rows = loss_changes(model, layers, scored)
    for key, values in plain.items():
        assert torch.equal(by_step[key], values)
        torch.testing.assert_close(rows[key], first_order(model, x, losses)[str(key)], rtol=0, atol=0)


def test_cells_that_were_removed_are_undefined() -> None:
    model, x = net(layers=1, both=False), batch()
    layers = find_layers(model)
    part = without(whole(model.rnn, layers[0])[0][0], torch.tensor([2]))
    with undisturbed(model):
        scores = sensitivities(model, layers, runs_of(model, layers, x), stages={model.rnn: [[part]]})
    assert scores[layers[0].key].isnan().tolist() == [False, False, True, False]


def test_a_row_for_each_word_where_calls_have_other_rows_than_sequences() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.high = nn.LSTM(3, 4, batch_first=True), nn.LSTM(4, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            words = self.low(x.reshape(-1, 2, 3))[0][:, -1].reshape(len(x), -1, 4)
            return self.high(words)[0][:, -1]

    rows = first_order(Words(), torch.randn(3, 6, 3), lambda model, x: model(x).mean(1))
    assert rows["low.l0"].shape == (9, 4)
    assert rows["high.l0"].shape == (3, 4)
    assert output_sensitivity(Words(), torch.randn(30, 6, 3), max_steps=15)["low.l0"].shape == (4,)


# What can go wrong


class Wrong(nn.Module):
    """Runs in ways through which no derivative comes back, or a bad one."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.rnn, self.how = nn.LSTM(3, 4, batch_first=True), how

    def forward(self, x: Tensor) -> Any:
        if self.how == "no_grad":
            with torch.no_grad():
                return self.rnn(x)[0]
        if self.how == "inference_mode":
            with torch.inference_mode():
                return self.rnn(x)[0]
        out = self.rnn(x)[0]
        results = {
            "detach": lambda: out.detach(),
            "constant": lambda: x + 1,
            "integers": lambda: out.argmax(-1),
            "infinite": lambda: (out * 0).sqrt(),
            "plain": lambda: out,
        }
        return results[self.how]()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no_grad", "no derivative comes back from the output to rnn.l0: .* runs under torch.no_grad"),
        ("inference_mode", "no derivative comes back from the output to rnn.l0"),
        ("detach", "no derivative comes back from the output to rnn.l0: .*forward detaches it.* give output="),
        ("constant", "no derivative comes back from the output to rnn.l0: it was not computed from them"),
        ("integers", "no tensor of floating point was found; give output="),
        ("infinite", "rnn.l0: what comes back to 4 of 4 cells is NaN or infinite"),
    ],
)
def test_outputs_from_which_nothing_good_comes_back(how: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        output_sensitivity(Wrong(how), torch.randn(2, 5, 3))


def test_arguments_that_cannot_be_used() -> None:
    model, x = Wrong("plain"), torch.randn(2, 5, 3)
    with pytest.raises(ValueError, match="vectors=0 must be 1 or more"):
        output_sensitivity(model, x, vectors=0)
    with pytest.raises(ValueError, match=r"layers='rnn.l9' matches no layer"):
        output_sensitivity(model, x, layers="rnn.l9")
    with pytest.raises(ValueError, match=r"mask .* has shape \(2, 4\), but a layer received 2 sequences of 5 steps"):
        output_sensitivity(model, x, mask=torch.ones(2, 4))
    with pytest.raises(TypeError, match="loss returned float; it must return a tensor"):
        taylor(model, x, lambda model, x: float(model(x).detach().mean()))
    with pytest.raises(ValueError, match=r"loss returned a tensor of shape \(2, 5\).* one a sequence"):
        first_order(model, x, lambda model, x: model(x).mean(2))
    with pytest.raises(ValueError, match="no derivative comes back from the loss"):
        first_order(Wrong("detach"), x, mean_loss)
    with pytest.raises(ValueError, match=r"layers \(rnn.l0\) received nothing"):
        output_sensitivity(model, x, forward=lambda model, x: x * torch.ones((), requires_grad=True))
    model.rnn.weight_hh_l0.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="weight_hh_l0 are NaN"):
        output_sensitivity(model, x)


# What is left as it was


def state_of(model: nn.Module) -> list[Any]:
    parts = [p for p in (*model.parameters(), *model.buffers())]
    tensors = [(p.detach().clone(), p._version, p.data_ptr(), p.requires_grad) for p in parts]
    grads = [None if p.grad is None else (id(p.grad), p.grad.clone(), p.grad._version) for p in parts]
    flags = [(m.training, sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    return [tensors, grads, flags, torch.get_rng_state(), torch.is_grad_enabled()]


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_and_the_random_states_are_as_before(fails: bool) -> None:
    model = Net()
    model.rnn.train()
    model.readout.eval()
    model.readout.bias.requires_grad_(False)
    mean_loss(model, torch.randn(3, 5, 3)).backward()
    before = state_of(model)
    x = torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(1))

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        value = losses(model, x + torch.randn(1))
        if fails:
            raise KeyboardInterrupt
        return value

    for run in (
        lambda: output_sensitivity(model, x, forward=loss),
        lambda: taylor(model, x, loss),
        lambda: first_order(model, x, loss),
    ):
        if fails:
            with pytest.raises(KeyboardInterrupt):
                run()
        else:
            run()
        assert equal(state_of(model), before)
    model.readout.weight.grad[0] += 1
    assert not equal(state_of(model), before), "a change would be seen"


def test_frozen_parameters_and_calls_without_gradients_give_the_same() -> None:
    model, x = net(), batch()
    expected = output_sensitivity(model, x)
    with torch.inference_mode():
        assert torch.equal(output_sensitivity(model, x)["rnn.l0"], expected["rnn.l0"])
    model.requires_grad_(False)
    model.train()
    with torch.no_grad():
        assert torch.equal(output_sensitivity(model, x)["rnn.l0"], expected["rnn.l0"])


def test_compiled_models() -> None:
    model, x = net(), batch()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(x)
    torch.testing.assert_close(output_sensitivity(compiled, x), output_sensitivity(model, x))


def test_nothing_is_warned_of() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        output_sensitivity(net(), batch())
    assert not Counter(str(item.message) for item in caught)
