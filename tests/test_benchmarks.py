import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
KINDS = ("lstm", "gru", "rnn")


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import naive
    import tasks

    yield SimpleNamespace(naive=naive, tasks=tasks)
    for name in ("naive", "tasks"):  # plain names, which others may have too
        del sys.modules[name]


def _kept_at_zero(network, x, cell):
    """The hidden states one step at a time, the cell's state set to zero after each."""
    mask = torch.ones(network.rnn.hidden_size, dtype=x.dtype)
    mask[cell] = 0
    state, hidden = None, []
    for step in x.split(1, dim=1):
        output, state = network.rnn(step, state)
        state = tuple(part * mask for part in state) if isinstance(state, tuple) else state * mask
        hidden.append(output * mask)
    return torch.cat(hidden, dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_removed_cell_stays_at_zero_and_the_others_run_on_without_it(bench, kind):
    task = bench.tasks.adding(steps=12)
    network = bench.tasks.train(task, cells=5, seed=3, epochs=0, kind=kind).double()
    x = task.test.x[:4].double()
    with torch.no_grad():
        hidden, _ = bench.naive.without(network, [2]).rnn(x)
        torch.testing.assert_close(hidden, _kept_at_zero(network, x, 2), atol=1e-14, rtol=0)
        assert (hidden[..., 2] == 0).all()
        assert not (network.rnn(x)[0][..., 2] == 0).any()  # the network itself is as before


def test_a_network_of_more_layers_is_refused_by_the_plain_ablation(bench):
    network = bench.tasks.train(bench.tasks.adding(steps=12), cells=5, seed=3, epochs=0)
    network.rnn = torch.nn.LSTM(2, 5, proj_size=2, batch_first=True)
    with pytest.raises(AssertionError, match="not a weight of one plain layer"):
        bench.naive.without(network, [0])


def test_a_curve_goes_from_the_intact_network_to_one_without_cells(bench):
    task = bench.tasks.adding(steps=12)
    network = bench.tasks.train(task, cells=5, seed=3, epochs=2)
    kept = bench.naive.curve(network, task, task.test, [4, 0, 3, 1, 2])
    assert len(kept) == len(bench.naive.counts(5)) == 6
    assert (kept[0], kept[-1]) == (1, 0)
    assert bench.naive.area(torch.linspace(1, 0, 6), 5) == pytest.approx(0.5)


def test_a_training_is_the_same_again_and_leaves_the_random_state(bench):
    task = bench.tasks.adding(steps=12)
    before = torch.get_rng_state()
    first, again, other = (bench.tasks.train(task, cells=5, seed=seed, epochs=1) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)


def test_training_lowers_the_loss_below_the_best_constant_answer(bench):
    task = bench.tasks.adding(steps=8)
    network = bench.tasks.train(task, cells=8, seed=0, epochs=15)
    losses = bench.tasks.per_sequence_loss(network, task, task.test)
    assert losses.shape == (512,)
    assert losses.mean() < 0.5 * bench.tasks.trivial_loss(task, task.test)


def test_no_sequence_is_in_two_splits(bench):
    task = bench.tasks.adding()
    rows = [tuple(row) for split in (task.train, task.validation, task.test) for row in split.x.flatten(1).tolist()]
    assert len(set(rows)) == len(rows) == 2268


def test_windows_in_time_share_no_moment_with_another_split(bench):
    windows = torch.arange(1000.0).unfold(0, 10, 1)[..., None]  # each value is its own time
    answers = windows[:, -1] + 3
    splits = bench.tasks._in_order(windows, answers, gap=13)
    mean, std = windows[: int(0.6 * len(windows))].mean(), windows[: int(0.6 * len(windows))].std()
    centre, spread = answers[: int(0.6 * len(windows))].mean(), answers[: int(0.6 * len(windows))].std()
    spans = [(float(split.x.min() * std + mean), float(split.y.max() * spread + centre)) for split in splits]
    assert spans[0][1] < spans[1][0]
    assert spans[1][1] < spans[2][0]


def test_an_answer_ahead_is_about_the_element_read_before(bench, tmp_path):
    lines = ["<>", *(f"{'ACDEFGHIKL'[i % 10]} {'_eh'[i % 3]}" for i in range(60)), "end"]
    for name in ("train", "test"):
        (tmp_path / f"protein-secondary-structure.{name}").write_text("\n".join(lines * 6))
    task = bench.tasks.protein(tmp_path)
    network = bench.tasks.train(task, cells=4, seed=0, epochs=0)
    assert network(task.test.x).shape == (*task.test.y.shape, 3)
    letters = task.test.x[0, :32].argmax(-1)
    assert [f"{'ACDEFGHIKL'[i % 10]}" for i in range(32)] == [bench.tasks.RESIDUES[k] for k in letters]
    assert task.test.y[0].tolist() == [i % 3 for i in range(32)]
