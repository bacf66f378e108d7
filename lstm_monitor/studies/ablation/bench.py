"""What an ablation study is made with: options, the model on its runs, and the time that is left."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lstm_monitor.core.distributed import processes
from lstm_monitor.core.errors import choose
from lstm_monitor.core.records import Ranking, Snapshot
from lstm_monitor.core.terms import AblationMode, Better, LayerKey
from lstm_monitor.importance.ranking import GREEDY, MEASURED, UNCENTRED, check_ranking_name
from lstm_monitor.importance.removal.network import Network
from lstm_monitor.importance.removal.outcomes import score_weights, weighted_mean
from lstm_monitor.layers.layer import Layers
from lstm_monitor.snapshots.outputs import Select
from lstm_monitor.snapshots.recorder import Recorder
from lstm_monitor.snapshots.runs import Run, check_initialized
from lstm_monitor.snapshots.taking import snapshot
from lstm_monitor.studies.ablation.distributed import by_itself

RANKINGS = ("auto", MEASURED, GREEDY, UNCENTRED, "std_x_outgoing", "sine/amplitude")
STEPS = 4096
"""About how many sequence steps the rankings are made on."""

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class StudyOptions:
    """How an ablation study is made; see `ablation_study`."""

    mode: AblationMode = "zero"
    rankings: tuple[Ranking | str, ...] = RANKINGS
    random_orders: int = 8
    points: int = 16
    seconds: float | None = None
    better: Better | None = None
    top: int | None = None
    score_name: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            ValueError: a value that is not allowed.
        """
        choose("mode", self.mode, ("zero", "mean"))
        if self.better is not None:
            choose("better", self.better, ("lower", "higher"))
        for name in self.rankings:
            if isinstance(name, str):
                check_ranking_name(name)
        for argument, least in (("random_orders", 0), ("points", 2)):
            value = getattr(self, argument)
            if value < least:
                raise ValueError(f"{argument}={value} is too few; give {least} or more")
        if self.top is not None and self.top < 1:
            raise ValueError(f"top={self.top} is too few; give 1 or more, or None to measure every cell")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"seconds={self.seconds!r} must be over 0, or None for as long as it takes")


@dataclass(frozen=True, eq=False)
class Bench:
    """What the stages share: the network, the options, when they began, the notes they add to, and who is told."""

    network: Network
    options: StudyOptions
    began: float
    notes: list[str]
    progress: Progress | None = None
    done: list[str] = field(default_factory=list)

    def advance(self, words: str) -> None:
        """One more evaluation is done."""
        self.done.append(words)
        if self.progress is not None:
            self.progress(min(len(self.done) / self._planned(), 1.0), words)

    def _planned(self) -> int:
        """How many evaluations there are about, greedy orders left out."""
        orders = 2 * len(self.options.rankings) + self.options.random_orders
        sizes = [self.network.parts[layer.key].weights.hidden_size for layer in self.network.layers]
        all_of_them = sum(
            size * len(self.network.runs) + orders * (min(self.options.points, size) - 1) for size in sizes
        )
        return max(all_of_them // processes(), 1)

    def until(self, key: LayerKey, share: float) -> float:
        """When a stage of a layer that ends at this share of the layer's time has to end; inf without a limit."""
        if self.options.seconds is None:
            return math.inf
        names = [layer.key for layer in self.network.layers]
        return self.began + self.options.seconds * (names.index(key) + share) / len(names)

    @property
    def scored(self) -> bool:
        """Whether there is a score to judge by."""
        return any(len(outcome.score) for outcome in self.network.intact)

    @property
    def judged_runs(self) -> tuple[int, ...]:
        """The runs that have what is judged by: a score, else an output."""
        has = [len(outcome.score) if self.scored else len(outcome.outputs) for outcome in self.network.intact]
        return tuple(index for index, count in enumerate(has) if count)


def set_up(
    model: nn.Module,
    layers: Layers,
    runs: Sequence[Run],
    options: StudyOptions,
    select: Select | None,
    live: bool | None,
    weights_back: Callable[[], None],
    snaps: Sequence[Snapshot] | None,
) -> tuple[Network, Sequence[Snapshot]]:
    """The network after its first pass, which must not have changed the weights, and `snaps`, or those it saw."""
    recorder = Recorder(() if snaps else dict.fromkeys(layer.module for layer in layers), STEPS)
    with recorder.batch(), by_itself():
        network = Network(model, layers, runs, select=select, live=live)
    weights_back()
    if options.mode == "mean":
        network.means = network.hidden_means()
    return network, snaps or snapshot(model, layers=layers, recordings=recorder.recordings())


@contextmanager
def weights_kept(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Weights that are changed inside are put back at the end, also after an error, or when what is yielded is called.

    Raises:
        ValueError: some were, and nothing else was raised; or a weight is not initialized yet.
    """
    check_initialized(model, "model")
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    try:
        yield lambda: _unchanged(model, before)
    except BaseException:
        _put_back(model, before)
        raise
    _unchanged(model, before)


def _put_back(model: nn.Module, before: Mapping[str, Tensor]) -> list[str]:
    """The names of the parameters that had changed."""
    changed = [name for name, value in model.named_parameters() if not _equal(value, before[name])]
    for name, value in model.named_parameters():
        if name in changed:
            value.data.copy_(before[name])
    return changed


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether all values are, NaN being NaN."""
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


def _unchanged(model: nn.Module, before: Mapping[str, Tensor]) -> None:
    changed = _put_back(model, before)
    if not changed:
        return
    raise ValueError(
        f"evaluate changed the model's weights ({', '.join(changed[:3])}{' ...' if len(changed) > 3 else ''}; they "
        "were put back); give a function that only measures"
    )


def checked(network: Network) -> list[str]:
    """Notes on what a reader has to know of the intact network; a score, or an only output, that is NaN is an error."""
    intact, scored = mean_score(network), any(len(outcome.score) for outcome in network.intact)
    if scored and not math.isfinite(intact):
        words = "NaN" if math.isnan(intact) else f"{intact}"
        raise ValueError(f"evaluate returned {words} for the whole network, so nothing can be compared with it")
    if not any(len(outcome.score) or outcome.outputs for outcome in network.intact):
        raise ValueError(
            "neither an output nor a score was found; evaluate= must return a number or a tensor, or give held_out="
        )
    return [f"not studied: {item}" for item in network.layers.skipped] + [
        *_odd_outputs(network, scored),
        *_in_training(network),
    ]


def _odd_outputs(network: Network, scored: bool) -> Iterator[str]:
    if all(bool(rows.isfinite().all()) for outcome in network.intact for rows in outcome.outputs):
        return
    words = "the whole network's output holds NaN or infinite values"
    if not scored:
        raise ValueError(f"{words}, so its change is not defined; give output=lambda result: ... that selects others")
    yield f"{words}: effects on the output are NaN"


def _in_training(network: Network) -> Iterator[str]:
    if network.trains:
        yield (
            "evaluate puts the model into train mode, where dropout is random and normalization is by the batch; "
            "it should call model.eval() (the mode and all buffers are put back)"
        )


def mean_score(network: Network) -> float:
    """The intact network's score; NaN where nothing is scored."""
    scores = [outcome.score for outcome in network.intact]
    weights = torch.cat([score_weights(run, score) for run, score in zip(network.runs, scores, strict=True)])
    return float(weighted_mean(torch.cat(scores), weights)) if len(weights) else math.nan
