"""Tables, lines and notes for people."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import lstm_monitor as lm
from lstm_monitor.report.layer_report import LayerReport
from lstm_monitor.report.notebook import page
from lstm_monitor.report.tables import cell_table, notes, summary_lines


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def layer_of(cells: int, held_out: bool = True) -> LayerReport:
    data = torch.randn(4, 30, 2) if held_out else None
    return lm.characterize(nn.LSTM(2, cells, batch_first=True), data, horizon=32).layers[0]


def cells_of(lines: list[str]) -> list[int]:
    return [int(line[18:].split()[0]) for line in lines]


def edited(layer: LayerReport, path: str, **changes: object) -> LayerReport:
    items = (replace(x, **changes) if x.path == path else x for x in layer.metrics.items)  # type: ignore[arg-type]
    return replace(layer, metrics=lm.Metrics(layer.key, tuple(items)))


@pytest.mark.parametrize("cells", [1, 2, 5, 8])
def test_few_cells_are_all_listed_once(cells: int) -> None:
    layer = layer_of(cells)
    _, *rows = cell_table(layer)
    peak = layer.metrics["step/peak_response"].cells
    assert cells_of(rows) == peak.argsort(descending=True).tolist()
    assert rows[0].startswith("most responsive")
    assert cells == 1 or rows[-1].startswith("least responsive")
    order = ", ".join(map(str, layer.ranking.order.tolist()))
    assert summary_lines([layer])[-1] == f"    in order {order}"


@pytest.mark.parametrize(("cells", "count", "rows"), [(9, 3, 6), (9, 5, 9), (12, 5, 10), (30, 1, 2)])
def test_no_cell_is_listed_twice(cells: int, count: int, rows: int) -> None:
    lines = cell_table(layer_of(cells), count)[1:]
    assert len(set(cells_of(lines))) == len(lines) == rows


def test_every_table_is_headed_by_its_layer() -> None:
    report = lm.characterize(nn.GRU(2, 9, num_layers=2), horizon=32)
    tables = [text.splitlines() for text in report.in_words().split("\n\n")]
    assert [table[0].split()[:2] for table in tables] == [["l0", "cell"], ["l1", "cell"]]
    long = replace(report.layers[0], key=lm.LayerKey("encoder.with.a.long.name"))
    assert len({len(line) for line in cell_table(long)}) == 1


def test_saturation_is_shown_as_percent() -> None:
    layer = layer_of(3)
    half = edited(layer, "gates/saturation", cells=torch.tensor([0.25, 0.25, 0.25]))
    assert "  gates/saturation     median 25% (p10 25%, p90 25%)" in summary_lines([half])


def test_what_reached_no_held_out_data() -> None:
    words = (
        "no held-out data reached this layer: stimuli are around zero with unit scale, activity and gates are unknown"
    )
    assert words in notes(layer_of(3, held_out=False))
    assert not any("held-out data reached" in note for note in notes(layer_of(3)))
    later = replace(layer_of(3, held_out=False), point_source="held_out")
    assert "no held-out data reached this layer: activity and gates are unknown" in notes(later)


def test_responses_that_are_not_finite_are_counted_with_the_other_reasons() -> None:
    layer = layer_of(3)
    reasons = torch.zeros_like(layer.metrics["step/settling_time"].reasons)
    assert not any("not finite" in note for note in notes(edited(layer, "step/settling_time", reasons=reasons)))
    reasons[:2, 0], reasons[0, 1] = int(lm.Reason.NONFINITE), int(lm.Reason.OUTSIDE)
    assert (
        "1 of 3 cells have step responses that are not finite (settling times by reason: 9 defined; "
        "1 the last sample is outside the band; 2 the response is not finite)"
    ) in notes(edited(layer, "step/settling_time", reasons=reasons))


def test_a_page_escapes_its_text() -> None:
    assert "&lt;b&gt;" in page("<b>", None, "cells")
    assert "<img" not in page("<b>", None, "cells")
    assert 'src="data:image/png;base64,eHg="' in page("", b"xx", "cells")
