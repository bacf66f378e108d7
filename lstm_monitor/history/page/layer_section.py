"""One layer on the page of a run: what was found, the pictures, the tables."""

from __future__ import annotations

import math
from collections.abc import Iterator

from lstm_monitor.history.comparison.pictures import course_picture
from lstm_monitor.history.comparison.run_words import changed_counts, headlines, layer_title, stability
from lstm_monitor.history.comparison.trajectory import Course, LayerCourse
from lstm_monitor.history.page.markup import bullets, element, picture, sentence, table, text
from lstm_monitor.metrics.catalog import CATALOG
from lstm_monitor.metrics.distributions import finite, quantiles
from lstm_monitor.report import pictures
from lstm_monitor.report.ablation.pictures import study_pictures
from lstm_monitor.report.ablation.records import LayerStudy
from lstm_monitor.report.ablation.tables import trial_rows
from lstm_monitor.report.ablation.verdict import judgement
from lstm_monitor.report.ablation.words import layer_notes
from lstm_monitor.report.drift import compare
from lstm_monitor.report.keys import documented_keys
from lstm_monitor.report.tables import notes
from lstm_monitor.report.text import labelled, shown

LEADERS = 5
"""Cells listed from either end of the ranking."""
_SHOWS = {name.rpartition("/")[2]: words for name, kind, words in documented_keys() if kind == "picture"}
_OF_A_CELL = ("step/peak_response", "step/settling_time", "sine/cutoff_frequency", "activity/std")


def layer_id(layer: LayerCourse) -> str:
    """The place of a layer on the page."""
    return f"layer-{'-'.join(layer.name.split())}"


def layer_section(course: Course, layer: LayerCourse) -> str:
    """All of one layer."""
    study = course.study_of(layer.name)
    words = [*notes(layer.last), *changed_counts(layer), *([stability(layer)] if stability(layer) else [])]
    several = len(layer.steps) > 1
    return element(
        "section",
        text("h2", layer.name),
        text("p", layer_title(layer).removeprefix(f"{layer.name}: "), class_="kind"),
        bullets(words),
        text("h3", "Over the training") if several else "",
        picture(course_picture(layer), f"{layer.name}: headline metrics over the training", "wide") if several else "",
        _metric_table(layer) if several else "",
        text("h3", f"At step {course.last.step}" if course.last.step is not None else "The cells"),
        element("div", *_pictures(course, layer), class_="cards"),
        _cell_table(layer),
        "" if study is None or course.study is None else _ablation(study, course),
        _all_metrics(layer),
        id=layer_id(layer),
    )


def _pictures(course: Course, layer: LayerCourse) -> Iterator[str]:
    for name, figure in pictures.pictures(layer.last, course.last.step).items():
        yield picture(figure, f"{layer.name}: {_SHOWS[name]}")


def _metric_table(layer: LayerCourse) -> str:
    """The headline metrics at the first and the last check."""
    far = {drift.metric: drift.distance for drift in compare(layer.last.metrics, layer.first.metrics)}
    rows = []
    for path in headlines(layer):
        values, unit = layer.quantiles[path], CATALOG[path].unit
        band = f"{shown(float(values[-1, 0]), unit)} to {shown(float(values[-1, 2]), unit)}"
        ends = [shown(float(values[place, 1]), unit) for place in (0, -1)]
        rows.append([labelled(path), *ends, band, shown(far.get(path, math.nan), form=".2f")])
    titles = ["metric", "median first", "median last", "p10 to p90 last", "distance"]
    return table(titles, rows, "All cells at the first and the last check")


def _cell_table(layer: LayerCourse) -> str:
    order, metrics = layer.last.ranking.order.tolist(), layer.last.metrics
    few = order if len(order) <= 2 * LEADERS else [*order[:LEADERS], *order[-LEADERS:]]
    paths = [path for path in _OF_A_CELL if path in metrics]
    rows = [
        [
            f"{cell}",
            f"{order.index(cell) + 1}",
            shown(float(layer.last.ranking.scores[cell])),
            *(shown(float(metrics[path].cells[cell]), CATALOG[path].unit) for path in paths),
        ]
        for cell in few
    ]
    caption = f"First and last cells by {layer.last.ranking.words}"
    return table(["cell", "place", "score", *map(labelled, paths)], rows, caption)


def _ablation(study: LayerStudy, course: Course) -> str:
    assert course.study is not None
    titles, *rows = trial_rows(study, course.study.score is not None)
    drawn = study_pictures(study, course.last.step)["ablation"]
    words = text("p", sentence(judgement(study)), class_="trust")
    words += bullets(list(layer_notes(study, course.study.score, course.study.better)))
    caption = "Rankings on trial; AUC: mean performance kept while cells are removed"
    return "".join(
        [
            text("h3", "Which ranking can be trusted?"),
            element(
                "div", picture(drawn, f"{study.key}: {_SHOWS['ablation']}"), element("div", words), class_="beside"
            ),
            table(titles, rows, caption),
        ]
    )


def _all_metrics(layer: LayerCourse) -> str:
    rows = []
    for item in layer.last.metrics.items:
        values, unit = finite(item.cells), CATALOG[item.path].unit
        ends = [shown(value, unit) for value in quantiles(values)]
        rows.append(
            [labelled(item.path), *ends, f"{len(values)} of {layer.last.hidden_size}", CATALOG[item.path].words]
        )
    listed = table(["metric", "p10", "median", "p90", "defined for", "what it is"], rows, "Every metric at this check")
    return element("details", text("summary", "All metrics"), listed)
