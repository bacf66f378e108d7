"""TensorBoard, W&B, Parquet and the returned report say the same: all four are read back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import lstm_monitor as lm
from lstm_monitor.history.sink import HistorySink
from lstm_monitor.integrations import TensorBoardSink, WandbSink
from lstm_monitor.integrations.tensorboard_sink import sink as tensorboard_sink_sink
from lstm_monitor.integrations.wandb_sink import sink as wandb_sink_sink
from lstm_monitor.integrations.wandb_sink import tables
from lstm_monitor.report.ablation.tables import study_markdown, trial_rows
from lstm_monitor.report.keys import run_key
from tests.helpers import trainings, wandb_runs
from tests.helpers.histories import differences
from tests.helpers.hosting import quick
from tests.helpers.trainings import PACKAGES

pytestmark = pytest.mark.filterwarnings(
    # wandb leaves the temporary folders of its table artifacts to the garbage collector.
    "ignore:Implicitly cleaning up <TemporaryDirectory:ResourceWarning"
)

AXIS = run_key("step")
EVERYTHING = {"scalars": 0, "histograms": 0, "tensors": 0, "images": 1}
BySteps = dict[str, dict[int | None, Any]]


@dataclass
class Places:
    """A training in four places: what sinks were given in order, and the last report that was returned."""

    reports: list[lm.Report]
    returned: lm.Report
    board: EventAccumulator
    wandb: wandb_runs.Written
    history: lm.History

    @property
    def checks(self) -> list[lm.Report]:
        return [report for report in self.reports if report.layers]


def read(folder: Path, board: Path, reports: list[lm.Report], returned: lm.Report) -> Places:
    written = wandb_runs.read_run(folder / "wb")
    events = EventAccumulator(str(board), size_guidance=EVERYTHING).Reload()
    return Places(reports, returned, events, written, lm.load_history(folder))


def in_lightning(folder: Path) -> Places:
    """Everything by default, through the Trainer's own loggers."""
    loggers = import_module(f"{PACKAGES[0]}.loggers")
    (folder / "wb").mkdir()
    quiet = wandb.Settings(**wandb_runs.QUIET)
    given = [
        loggers.TensorBoardLogger(folder / "board", name="", version=""),
        loggers.WandbLogger(save_dir=folder / "wb", mode="offline", settings=quiet),
    ]
    memory, check = lm.MemorySink(), lm.AblationCheck(rankings=["measured"], random_orders=2, points=4)
    ours = trainings.callback(PACKAGES[0], sinks=[memory], ablation=check)
    trainings.seed_all()
    module = trainings.modules(PACKAGES[0]).Plain()
    trainer = trainings.trainer(PACKAGES[0], folder, ours, logger=given)
    trainer.fit(module, trainings.loader(), trainings.loader(1))
    wandb.finish()
    return read(folder, folder / "board", memory.reports, ours.report)


def in_a_loop(folder: Path) -> Places:
    """With sinks, and the history beside them; a layer of two directions, so that some values are undefined."""
    (folder / "wb").mkdir()
    memory, data = lm.MemorySink(), trainings.sequences(1, 8)
    trainings.seed_all()
    model = Both()
    with wandb_runs.start(folder / "wb") as run:
        sinks = [TensorBoardSink(folder / "board", pictures_every=0), WandbSink(run, pictures_every=0), memory]
        check = quick(lambda model: (model(data) - data[:, -1:, 0]).square().mean(1))
        settings: dict[str, Any] = {
            "every_n_steps": 2,
            "horizon": trainings.HORIZON,
            "budget": None,
            "on_error": "raise",
        }
        monitor = lm.LSTMMonitor(model, data, sinks=sinks, ablation=check, **settings)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        monitor.on_train_begin()
        for step, (x, y) in enumerate(trainings.loader()):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
            monitor.on_train_batch_end(step)
        returned = monitor.on_train_end()
    assert returned is not None
    return read(folder, folder / "board", memory.reports, returned)


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 5, batch_first=True, bidirectional=True), nn.Linear(10, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][:, -1])


# What differs from place to place, in words; empty where all agree


def scalars(places: Places) -> Iterator[str]:
    expected = by_step((report.step, report.scalars()) for report in places.reports)
    single = {name: {step: float(np.float32(value)) for step, value in at.items()} for name, at in expected.items()}
    tags = [tag for tag in places.board.Tags()["scalars"] if tag.startswith("lstm_monitor/")]
    shown = {tag: {event.step: event.value for event in places.board.Scalars(tag)} for tag in tags}
    yield from compared("scalar in TensorBoard", single, shown)
    yield from compared("scalar in W&B", expected, in_wandb(places, float | int))
    kept = by_step((report.step, report.scalars()) for report in places.history.reports())
    yield from compared("scalar in Parquet", expected, kept)
    frame = places.history.scalars()
    table = {name: frame[name].dropna().to_dict() for name in frame if str(name).startswith("lstm_monitor/")}
    yield from compared("scalar in the table of the history", expected, table)
    last = places.checks[-1].scalars() | places.reports[-1].scalars()
    yield from compared("scalar of the report", {"last": last}, {"last": places.returned.scalars()})
    yield from compared("value in W&B's summary", {"last": last}, {"last": {k: places.wandb.summary[k] for k in last}})


def histograms(places: Places) -> Iterator[str]:
    expected = by_step((report.step, report.histograms()) for report in places.reports)
    tags = [tag for tag in places.board.Tags()["histograms"] if tag.startswith("lstm_monitor/")]
    shown = {tag: {event.step: event.histogram_value for event in places.board.Histograms(tag)} for tag in tags}
    yield from compared("histogram in TensorBoard", expected, shown, in_tensorboard)
    logged = {name: at for name, at in in_wandb(places, dict).items() if first(at)["_type"] == "histogram"}
    yield from compared("histogram in W&B", expected, logged, counts_those)
    kept = by_step((report.step, report.histograms()) for report in places.history.reports())
    yield from compared("histogram in Parquet", expected, kept, np.array_equal)


def cells(places: Places) -> Iterator[str]:
    everything = places.history.to_pandas()
    for number, report in enumerate(places.checks):
        expected = report.to_pandas()
        columns, rows = places.wandb.table(run_key("cells"), number)
        table = pd.DataFrame(rows, columns=columns)
        kept = everything[everything["step"] == report.step].reset_index(drop=True)
        for name in expected:
            if not same(expected[name], table[name]):
                yield f"{name} of the cells in W&B at step {report.step}"
            if not same(expected[name], kept[name]):
                yield f"{name} of the cells in Parquet at step {report.step}"
    last = places.checks[-1]
    yield from differences(replace(last, study=None), replace(places.returned, study=None), "the report")
    for one, other in zip(places.checks[:-1], places.history.reports(), strict=False):
        yield from differences(one, other, f"Parquet at step {one.step}")


def study(places: Places) -> Iterator[str]:
    found, expected = places.returned.study, places.reports[-1].study
    assert found is not None
    assert expected is not None
    yield from differences(expected, found, "the report")
    yield from differences(expected, places.history.study, "Parquet")
    yield from differences(expected, places.history.last.study, "the last report in Parquet")
    effects = expected.to_pandas()
    columns, rows = places.wandb.table(run_key("ablation_cells"))
    table = pd.DataFrame(rows, columns=columns)
    yield from (f"{name} of the study in W&B" for name in effects if not same(effects[name], table[name]))
    rankings = [[str(layer.key), *row] for layer in expected.layers for row in trial_rows(layer, True)[1:]]
    if places.wandb.table(run_key("ablation_rankings"))[1] != rankings:
        yield "the rankings of the study in W&B"
    [card] = places.board.Tensors(f"{run_key('ablation')}/text_summary")
    if card.tensor_proto.string_val[0].decode() != study_markdown(expected):
        yield "the study's card in TensorBoard"


PARTS = (scalars, histograms, cells, study)


def by_step(found: Any) -> BySteps:
    """Values by name and step."""
    values: BySteps = {}
    for step, named in found:
        for name, value in named.items():
            values.setdefault(name, {})[step] = value
    return values


def in_wandb(places: Places, kind: Any) -> BySteps:
    """What our rows hold of a kind."""
    rows = [row for row in places.wandb.rows if AXIS in row]
    ours = ((row[AXIS], {k: v for k, v in row.items() if k.startswith("lstm_monitor/") and k != AXIS}) for row in rows)
    return by_step((step, {name: v for name, v in row.items() if isinstance(v, kind)}) for step, row in ours)


def compared(
    what: str, expected: BySteps, found: BySteps, agree: Callable[[Any, Any], bool] = lambda one, other: one == other
) -> Iterator[str]:
    yield from (f"{what}: {name} is in one place only" for name in expected.keys() ^ found.keys())
    for name in expected.keys() & found.keys():
        if expected[name].keys() != found[name].keys():
            yield f"{what}: {name} at steps {list(found[name])}, not {list(expected[name])}"
            continue
        steps = [step for step in expected[name] if not agree(expected[name][step], found[name][step])]
        yield from (f"{what}: {name} at step {step}" for step in steps)


def first(at: dict[int | None, Any]) -> Any:
    return next(iter(at.values()))


def in_tensorboard(values: Any, shown: Any) -> bool:
    """Whether a histogram has the moments of the values, and counts each where it lies."""
    moments = [shown.min, shown.max, shown.num, shown.sum, shown.sum_squares]
    below = np.searchsorted(values, shown.bucket_limit[:-1])
    return moments == pytest.approx(
        [values[0], values[-1], len(values), values.sum(), np.square(values).sum()], rel=1e-12
    ) and np.array_equal(np.cumsum(shown.bucket), [*below, len(values)])


def counts_those(values: Any, shown: Any) -> bool:
    counts = np.histogram(values, np.array(shown["bins"]))[0]
    return len(values) == sum(shown["values"]) and counts.tolist() == shown["values"]


def same(one: pd.Series, other: pd.Series) -> bool:
    """Whether two columns are equal to the last bit; undefined equals undefined."""
    missing = one.isna()
    return missing.tolist() == other.isna().tolist() and one[~missing].tolist() == other[~missing].tolist()


@pytest.fixture(scope="module", params=[in_lightning, in_a_loop])
def places(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Places:
    return request.param(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("part", PARTS)
def test_all_places_say_the_same(places: Places, part: Callable[[Places], Iterator[str]]) -> None:
    assert len(places.checks) == 3
    assert list(part(places)) == []


# Each comparison finds a planted fault


def wrong_scalar_in_tensorboard(patch: pytest.MonkeyPatch) -> None:
    from torch.utils.tensorboard import summary

    right = summary.scalar
    patch.setattr(summary, "scalar", lambda name, value: right(name, value * (1 + 1e-6 * name.endswith("std/p50"))))


def wrong_count_in_tensorboard(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tensorboard_sink_sink, "counted", shifted(tensorboard_sink_sink.counted))


def wrong_count_in_wandb(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(wandb_sink_sink, "counted", shifted(wandb_sink_sink.counted))


def shifted(counted: Any) -> Any:
    """One cell in the bin beside its own."""

    def wrong(values: Any, bins: int) -> Any:
        counts, edges = counted(values, bins)
        counts[0] -= 1
        counts[1] += 1
        return counts, edges

    return wrong


def wrong_scalar_in_wandb(patch: pytest.MonkeyPatch) -> None:
    right = WandbSink._values

    def wrong(sink: WandbSink, report: lm.Report, to: Any) -> dict[str, Any]:
        values = right(sink, report, to)
        return values | {name: value * (1 + 1e-15) for name, value in values.items() if name.endswith("std/p50")}

    patch.setattr(WandbSink, "_values", wrong)


def wrong_cell_in_wandb(patch: pytest.MonkeyPatch) -> None:
    right = tables.cell_rows

    def wrong(report: lm.Report) -> Any:
        rows = right(report)
        rows[0][4] *= 1 + 1e-15
        return rows

    patch.setattr(tables, "cell_rows", wrong)


def wrong_effect_in_wandb(patch: pytest.MonkeyPatch) -> None:
    right = tables.study_table
    patch.setattr(tables, "study_table", lambda study: (table := right(study)) | {"cell": table["cell"][::-1]})


def wrong_scalar_in_parquet(patch: pytest.MonkeyPatch) -> None:
    in_the_history(patch, lambda report: replace(report, cost=None if report.cost is None else report.cost + 1e-12))


def wrong_cell_in_parquet(patch: pytest.MonkeyPatch) -> None:
    def wrong(report: lm.Report) -> lm.Report:
        turned = [replace(it.ranking, scores=it.ranking.scores.flip(0)) for it in report.layers]
        pairs = zip(report.layers, turned, strict=True)
        return replace(report, layers=tuple(replace(layer, ranking=ranking) for layer, ranking in pairs))

    in_the_history(patch, wrong)


def wrong_study_in_parquet(patch: pytest.MonkeyPatch) -> None:
    def wrong(report: lm.Report) -> lm.Report:
        made = report.study
        return report if made is None else replace(report, study=replace(made, seconds=made.seconds + 1e-9))

    in_the_history(patch, wrong)


def in_the_history(patch: pytest.MonkeyPatch, wrong: Callable[[lm.Report], lm.Report]) -> None:
    right = HistorySink.write
    patch.setattr(HistorySink, "write", lambda sink, report: right(sink, wrong(report)))


PLANTS = (
    (wrong_scalar_in_tensorboard, scalars, "scalar in TensorBoard"),
    (wrong_scalar_in_wandb, scalars, "scalar in W&B"),
    (wrong_scalar_in_parquet, scalars, "scalar in Parquet"),
    (wrong_count_in_tensorboard, histograms, "histogram in TensorBoard"),
    (wrong_count_in_wandb, histograms, "histogram in W&B"),
    (wrong_cell_in_wandb, cells, "score of the cells in W&B"),
    (wrong_cell_in_parquet, cells, "score of the cells in Parquet"),
    (wrong_effect_in_wandb, study, "cell of the study in W&B"),
    (wrong_study_in_parquet, study, "Parquet.seconds"),
)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Places:
    """One training with every fault at once: each is in a place of its own."""
    with pytest.MonkeyPatch.context() as patch:
        for plant, _, _ in PLANTS:
            plant(patch)
        return in_a_loop(tmp_path_factory.mktemp("planted"))


@pytest.mark.parametrize(("plant", "part", "words"), PLANTS)
def test_a_planted_fault_is_found(planted: Places, plant: Any, part: Any, words: str) -> None:
    assert any(found.startswith(words) for found in part(planted))
