"""Does a ranking foretell what removing a cell does?

Trains small networks (tasks.py), ranks their cells on validation data, and holds each ranking against ablation on test
data, which no ranking has seen. The truth is the plain loop of naive.py, not the library's own. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import naive
import tasks
import torch
from torch import Tensor

import lstm_monitor as lm
from lstm_monitor.importance.ranking import ranking_names

LAYER = "rnn.l0"
NAMED = ("auto", "output_sensitivity", "uncentred_sensitivity", "std_x_outgoing", "measured", "greedy")
"""The library's rankings; beside them stand all its metrics."""
BY_HAND = ("naive effect on output", "naive effect on loss")
"""The exact effects on validation data, by the plain loop; how well they do is the ceiling that noise sets."""
TAYLOR = "taylor"
"""Sum of abs(h * dL/dh) on validation data, with labels."""
RANDOM_ORDERS = 20


@dataclass(frozen=True)
class Trial:
    """One ranking of one network.

    ``rho_output`` and ``rho_loss``: Spearman's rho with the single-cell effects (``rho_held``: with that on the output
    of holding the cell at its mean instead of at zero), over the cells whose score is defined
    (their share is ``defined``); NaN for fewer than three of these or for scores that are all equal. ``auc_least`` and
    ``auc_most``: area under the performance kept, the least or the most important cells removed first; a network that
    does worse than one without cells counts as that one (0), and one better than the intact as intact (1).
    ``raw_least`` and ``raw_most``: the same without these bounds, as `lm.ablation_study` has it.
    """

    rho_output: float
    rho_loss: float
    rho_held: float
    auc_least: float
    auc_most: float
    raw_least: float
    raw_most: float
    defined: float

    @property
    def gap(self) -> float:
        """How much better it is to remove what the ranking calls unimportant."""
        return self.auc_least - self.auc_most


@dataclass(frozen=True)
class Model:
    """A trained network: its test loss, that of the best constant answer, and all its trials.

    ``random_auc`` is the mean over random orders, ``random_gap`` how far two of them lie apart (95% of the pairs).
    """

    task: str
    cells: int
    seed: int
    loss: float
    constant: float
    random_auc: float
    random_gap: float
    seconds: float
    trials: Mapping[str, Trial]


def scores_of(network: tasks.Network, task: tasks.Task) -> dict[str, Tensor]:
    """Every ranking's scores ``(H,)`` on validation data; NaN where a metric is not defined."""
    named = {name: _named(network, task.validation.x, name) for name in NAMED if name in ranking_names()}
    effects = naive.effects(network, task, task.validation)
    by_hand = dict(zip(BY_HAND, (effects.output, effects.loss), strict=True))
    metrics = lm.characterize(network, task.validation.x)[LAYER].metrics
    taylor = lm.taylor(
        network, (task.validation.x, task.validation.y), lambda net, batch: task.loss(net(batch[0]), batch[1])
    )
    by_labels = {TAYLOR: taylor[LAYER]}
    return {**named, **by_labels, **by_hand, **{item.path: item.cells for item in metrics.items}}


def _named(network: tasks.Network, held_out: Tensor, name: str) -> Tensor:
    ranking = lm.characterize(network, held_out, rank_by=name)[LAYER].ranking
    if name not in ("auto", ranking.name):
        raise RuntimeError(f"asked to rank by {name}, the library ranked by {ranking.name}: {ranking.words}")
    return ranking.scores


def judge(network: tasks.Network, task: tasks.Task, scores: Tensor, truth: naive.Effects) -> Trial:
    """One ranking against the truth on test data; cells without a score come last."""
    order = (-scores).argsort(stable=True).tolist()
    least, most = (naive.curve(network, task, task.test, cells) for cells in (order[::-1], order))
    defined = ~torch.isnan(scores)
    return Trial(
        rho_output=spearman(scores[defined], truth.output[defined]),
        rho_loss=spearman(scores[defined], truth.loss[defined]),
        rho_held=spearman(scores[defined], truth.held[defined]),
        auc_least=naive.area(least.clamp(0, 1), len(order)),
        auc_most=naive.area(most.clamp(0, 1), len(order)),
        raw_least=naive.area(least, len(order)),
        raw_most=naive.area(most, len(order)),
        defined=float(defined.float().mean()),
    )


def spearman(a: Tensor, b: Tensor) -> float:
    """Spearman's rho; NaN for fewer than three values or for equal ones."""
    from scipy.stats import spearmanr

    if len(a) < 3 or bool((a == a[0]).all()) or bool((b == b[0]).all()):
        return float("nan")
    return float(spearmanr(a.double().numpy(), b.double().numpy()).statistic)


def examine(task: tasks.Task, cells: int, seed: int) -> Model:
    """Train one network and try every ranking on it."""
    began = time.perf_counter()
    network = tasks.train(task, cells, seed)
    truth = naive.effects(network, task, task.test)
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(cells, generator=generator).tolist() for _ in range(RANDOM_ORDERS)]
    kept = [naive.curve(network, task, task.test, order).clamp(0, 1) for order in orders]
    areas = torch.tensor([naive.area(values, cells) for values in kept])
    apart = (areas[:, None] - areas)[torch.ones(len(areas), len(areas)).triu(1).bool()].abs()
    trials = {name: judge(network, task, scores, truth) for name, scores in scores_of(network, task).items()}
    return Model(
        task=task.name,
        cells=cells,
        seed=seed,
        loss=float(tasks.per_sequence_loss(network, task, task.test).mean()),
        constant=tasks.trivial_loss(task, task.test),
        random_auc=float(areas.mean()),
        random_gap=float(apart.quantile(0.95)),
        seconds=time.perf_counter() - began,
        trials=trials,
    )


# --- tables ----------------------------------------------------------------------------------------------------------


def mean(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; NaN of none."""
    return float(torch.tensor(list(values)).nanmean())


def overall(models: Sequence[Model]) -> str:
    """A line a ranking, over all networks: the named ones first, then the metrics by the size of rho."""
    lines = [
        "| ranking | rho, output | lowest | rho, loss | held at mean | AUC gap | gap > 0 | least first | defined |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    names = list(dict.fromkeys(name for model in models for name in model.trials))
    chosen = [name for name in (*BY_HAND, *NAMED, TAYLOR) if name in names]
    size = {name: abs(mean(trial.rho_output for trial in _trials(models, name))) for name in names}
    rest = sorted((name for name in names if name not in chosen), key=lambda name: -size[name] if size[name] > 0 else 0)
    lines += [_line(name, _trials(models, name)) for name in (*chosen, *rest)]
    auc, gap = mean(model.random_auc for model in models), mean(model.random_gap for model in models)
    lines.append(f"| random orders | 0 | | 0 | 0 | 0 (95% of pairs within {gap:.3f}) | | {auc:.3f} | |")
    return "\n".join(lines)


def _trials(models: Sequence[Model], name: str) -> list[Trial]:
    return [model.trials[name] for model in models if name in model.trials]


def _line(name: str, trials: Sequence[Trial]) -> str:
    rhos = [trial.rho_output for trial in trials if trial.rho_output == trial.rho_output]
    return (
        f"| {name} | {mean(rhos):.2f} | {min(rhos, default=float('nan')):.2f} "
        f"| {mean(trial.rho_loss for trial in trials):.2f} | {mean(trial.rho_held for trial in trials):.2f} "
        f"| {mean(trial.gap for trial in trials):.3f} | {mean(float(trial.gap > 0) for trial in trials):.0%} "
        f"| {mean(trial.auc_least for trial in trials):.3f} | {mean(trial.defined for trial in trials):.0%} |"
    )


def by_task(models: Sequence[Model]) -> str:
    """A line a task: loss, and for the main rankings rho with the effect on the output and the AUC gap."""
    names = [name for name in (*BY_HAND, *NAMED, TAYLOR) if any(name in model.trials for model in models)]
    lines = [
        f"| task | networks | loss / constant answer | {' | '.join(names)} | random orders |",
        "|---" * (len(names) + 4) + "|",
    ]
    for task in dict.fromkeys(model.task for model in models):
        group = [model for model in models if model.task == task]
        pairs = [_pair(_trials(group, name)) for name in names]
        ratio = mean(model.loss / model.constant for model in group)
        band = mean(model.random_gap for model in group)
        lines.append(f"| {task} | {len(group)} | {ratio:.3f} | {' | '.join(pairs)} | within {band:.3f} |")
    return "\n".join(lines)


def _pair(trials: Sequence[Trial]) -> str:
    return f"{mean(trial.rho_output for trial in trials):.2f}; {mean(trial.gap for trial in trials):.3f}"


def main() -> None:
    """Train, judge and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", nargs="*", help="names; all that can be made by default")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--cells", type=int, nargs="*", default=[32, 64])
    parser.add_argument("--data", type=Path, help="folder with protein/ and mnist/, for two more tasks")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    makers = tasks.available(options.data)
    models = []
    for name in options.tasks or makers:
        task = makers[name]()
        for cells in options.cells:
            for seed in options.seeds:
                models.append(examine(task, cells, seed))
                print(f"{name}, {cells} cells, seed {seed}: {models[-1].seconds:.0f} s", file=sys.stderr, flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(model) for model in models], indent=1))
    print(f"{len(models)} networks, torch {torch.__version__}\n\n{overall(models)}\n")
    print(f"For each task: rho with the effect on the output; AUC gap.\n\n{by_task(models)}")


if __name__ == "__main__":
    main()
