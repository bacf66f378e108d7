"""Ablation studies: what removing cells really does, and which rankings foretell it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from lstm_monitor.core.records import Ranking
from lstm_monitor.core.terms import AblationMode, Better
from lstm_monitor.core.undisturbed import undisturbed
from lstm_monitor.layers.finding import removable_layers
from lstm_monitor.layers.layer import Layers
from lstm_monitor.report.ablation.result import Study
from lstm_monitor.snapshots.batching import SIZE, in_batches, sequences_of
from lstm_monitor.snapshots.held_out import Forward
from lstm_monitor.snapshots.outputs import Select
from lstm_monitor.snapshots.runs import Run, runs_of
from lstm_monitor.snapshots.taking import snapshot
from lstm_monitor.studies.ablation.bench import RANKINGS, Progress, StudyOptions
from lstm_monitor.studies.ablation.making import make_study

Evaluate = Callable[[nn.Module], Any]
Loss = Callable[[nn.Module, Any], Any]
RACE_SIZE = 32
"""Sequences a batch where cells race: a cell that is out is measured no more."""


def ablation_study(  # noqa: PLR0913  # one argument for each thing that a user may choose
    model: nn.Module,
    evaluate: Evaluate | None = None,
    *,
    loss: Loss | None = None,
    held_out: Any = None,
    layers: str | Sequence[str] = "*",
    mode: AblationMode = "zero",
    rankings: Sequence[Ranking | str] = RANKINGS,
    random_orders: int = 8,
    points: int = 16,
    seconds: float | None = None,
    top: int | None = None,
    better: Better | None = None,
    output: Select | None = None,
    forward: Forward | None = None,
    lengths: Any = None,
    mask: Any = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Study:
    """Remove cells, one by one and more and more of them, and see what that does to the output and to the score.

    The model runs with its recurrent layers computed from copies of their weights: its own are not touched (in half
    precision they are edited in place and put back).

    Args:
        model: any torch module with recurrent layers.
        evaluate: called as ``evaluate(model)``: one number, or one a sequence ``(N,)`` (then differences are paired and
            have standard errors). It must measure only, and give the same number for the same network.
        loss: instead of it, ``loss(model, batch)`` for each batch of `held_out`: ``(N,)``, or one number, the mean over
            its sequences. The output's change then comes from the same runs.
        held_out: batches on which the output's change is measured, see `characterize`; without them it is that of
            what the model puts out while `evaluate` runs it.
        layers: glob or globs over layer names. One layer is ablated at a time.
        mode: removed cells give "zero", or their "mean" over the held-out sequences.
        rankings: which to compare: `Ranking` records or names as in ``rank_by``; "measured" and "greedy" are made here.
        random_orders: orders of removal that the rankings are held against.
        points: how many points a curve has beside its first.
        seconds: about how long it may take; then fewer sequences, cells or orders are used, and the notes say so.
        top: only the first `top` cells are wanted: cells race, and those that are out for sure are measured no more;
            their effects are then estimates (`Effects.exact`).
        better: whether "lower" or "higher" scores are better; by default what emptied layers make worse.
        output: selects the output tensor from what the model returns; by default the first.
        forward: called as ``forward(model, batch)`` where the model takes its held-out batch in another way.
        lengths: (N,) steps of each sequence that are no padding.
        mask: (N, T) True for the steps that count.
        seed: of the random orders, the bootstrap, and the order of the sequences where data are divided.
        progress: called as ``progress(share_done, words)``.

    Returns:
        The study: ``keep(max_loss)`` for `prune`, ``to_pandas()``, ``plot()``, ``in_words()``.

    Raises:
        TypeError: `model` is no torch module; an `evaluate` that is no function, or returns no number.
        ValueError: neither `evaluate`, `loss` nor `held_out`; an `evaluate` that returns NaN for the whole network or
            changes its weights; no recurrent layer; unknown names.

    Example:
        >>> import lstm_monitor as lm, torch
        >>> model = torch.nn.LSTM(3, 8, batch_first=True)
        >>> study = lm.ablation_study(model, held_out=torch.randn(16, 20, 3), rankings=["measured"])
        >>> len(study["l0"].effects.output)
        8
    """
    name = _name(evaluate, loss)
    asked = (rankings,) if isinstance(rankings, str | Ranking) else tuple(rankings)
    options = StudyOptions(mode, asked, random_orders, points, seconds, better, top, name, seed)
    found = removable_layers(model, layers)
    data: dict[str, Any] = {"forward": forward, "lengths": lengths, "mask": mask}
    if loss is not None and forward is None:
        data["forward"] = loss
    if held_out is not None and lengths is None and mask is None:
        size = SIZE if top is None else RACE_SIZE
        with undisturbed(model):
            held_out = in_batches(model, found, held_out, forward=data["forward"], select=output, size=size, seed=seed)
    runs = tuple(_runs(model, found, evaluate, loss, held_out, data))
    snaps = None if held_out is None else snapshot(model, held_out, layers=found, **data)
    return make_study(model, found, runs, options, snaps=snaps, select=output, progress=progress)


def _name(evaluate: Evaluate | None, loss: Loss | None) -> str | None:
    if evaluate is not None and loss is not None:
        raise ValueError("evaluate= and loss= were both given; give one of them")
    given = evaluate if loss is None else loss
    if given is not None and not callable(given):
        argument = "evaluate" if loss is None else "loss"
        raise TypeError(
            f"{argument}={type(given).__name__} is no function; give one that returns a number, or data as held_out="
        )
    name = getattr(given, "__name__", "score")
    return None if given is None else "score" if name.startswith("<") else name


def _runs(
    model: nn.Module,
    found: Layers,
    evaluate: Evaluate | None,
    loss: Loss | None,
    held_out: Any,
    data: dict[str, Any],
) -> Iterator[Run]:
    if held_out is None and (evaluate is None or loss is not None):
        needed = "held_out=None: loss= needs batches" if loss is not None else "nothing to measure"
        raise ValueError(f"{needed}; give evaluate= (evaluate(model) returns a number) or held_out= (or both)")
    if held_out is not None:
        runs = runs_of(model, found, held_out, **(data if loss is None else data | {"forward": loss}))
        batches = held_out if isinstance(held_out, list) else [held_out]
        for run, batch in zip(runs, batches, strict=True):
            yield run if loss is None else replace(run, score=_itself, weight=float(sequences_of(batch) or 1))
    if evaluate is not None:
        yield Run(lambda: evaluate(model), score=_itself, watched=held_out is None)


def _itself(result: Any) -> Any:
    return result
