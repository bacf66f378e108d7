"""A run as one page that needs nothing else: the pictures lie in it."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path

from lstm_monitor.core.errors import require
from lstm_monitor.history.comparison.run_words import course_notes, headlines, run_words
from lstm_monitor.history.comparison.trajectory import Course, LayerCourse
from lstm_monitor.history.page.layer_section import layer_id, layer_section
from lstm_monitor.history.page.looks import STYLE
from lstm_monitor.history.page.markup import bullets, element, sentence, table, text
from lstm_monitor.metrics.catalog import CATALOG
from lstm_monitor.report.ablation.verdict import verdict
from lstm_monitor.report.ablation.words import lead, score_line
from lstm_monitor.report.tables import HEADLINES
from lstm_monitor.report.text import labelled, shown


def write_page(course: Course, path: Path) -> None:
    """Write the page of a run.

    Raises:
        ImportError: matplotlib is not installed (extra ``plots``).
        OSError: the file cannot be written.
    """
    require("matplotlib", "plots")
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{part}\n" for part in parts_of(course))


def parts_of(course: Course) -> Iterator[str]:
    """The page in parts, so that the pictures of one layer at a time are in memory."""
    title = course.name or "run"
    facts = run_words(course).removeprefix(f"{title}: ")
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{html.escape(title)} - lstm_monitor</title>\n<style>{STYLE}</style>\n</head>\n<body>"
    yield element("header", text("p", "lstm_monitor", class_="eyebrow"), text("h1", title), text("p", facts))
    yield _contents(course)
    yield "<main>"
    yield _alarms(course)
    yield _overview(course)
    for layer in course.layers:
        yield layer_section(course, layer)
    yield _reading(course)
    yield "</main>"
    made = ", ".join(f"{name} {number}" for name, number in course.last.versions.items())
    yield f"{text('footer', f'Measured with {made}.' if made else '')}\n</body>\n</html>"


def _contents(course: Course) -> str:
    links = [("layers", "All layers"), *((layer_id(layer), layer.name) for layer in course.layers)]
    links += [("reading", "How to read this")]
    links = [("alarms", f"Alarms ({len(course.alarms)})"), *links] if course.alarms else links
    items = (element("li", text("a", words, href=f"#{place}")) for place, words in links)
    return element("nav", element("ul", *items), aria_label="Contents").replace("aria_label", "aria-label")


def _alarms(course: Course) -> str:
    if not course.alarms:
        return ""
    rows = [["-" if step is None else str(step), a.layer, a.words, a.advice] for step, a in reversed(course.alarms)]
    listed = table(
        ["step", "layer", "what was seen", "what to do"], rows[:50], "Signs that something goes wrong, the latest first"
    )
    return element("section", text("h2", "Alarms"), listed, class_="alarms", id="alarms")


def _overview(course: Course) -> str:
    known = [path for path in HEADLINES if path != "sine/amplitude"]  # much like the response to steps
    shown_paths = [path for path in known if any(path in headlines(layer) for layer in course.layers)]
    titles = ["layer", "kind", "cells", *map(labelled, shown_paths), "not settled", "dead", "ranking's tau"]
    titles += ["ranking on trial"] if course.study is not None else []
    rows = [_overview_row(course, layer, shown_paths) for layer in course.layers]
    caption = "Medians over the cells at the first and the last check; tau: agreement with the check before"
    about = "" if course.study is None else text("p", sentence(f"{lead(course.study)}; {score_line(course.study)}."))
    notes = course_notes(course)
    return element(
        "section", text("h2", "All layers"), table(titles, rows, caption), about, bullets(notes), id="layers"
    )


def _overview_row(course: Course, layer: LayerCourse, paths: list[str]) -> list[str]:
    row = [layer.name, layer.last.kind.replace("_", " "), str(layer.last.hidden_size)]
    row += [ends_words(layer, path) for path in paths]
    row += [f"{layer.counts[name][-1]:.0f}" if name in layer.counts else "-" for name in ("flagged", "dead")]
    row.append(shown(float(layer.taus[-1, 0]), form=".2f"))
    if course.study is not None:
        study = course.study_of(layer.name)
        row.append(verdict(study, study.trials[0]) if study is not None and study.trials else "-")
    return [cell.replace("nan", "-") for cell in row]


def ends_words(layer: LayerCourse, path: str) -> str:
    """The median at the first and at the last check, once where there is one check."""
    values, unit = layer.quantiles[path][:, 1], CATALOG[path].unit
    ends = [values[0], values[-1]] if len(values) > 1 else [values[-1]]
    return " \u2192 ".join(shown(float(value), unit) for value in ends)


def _reading(course: Course) -> str:
    paths = [path for path in HEADLINES if any(path in layer.last.metrics for layer in course.layers)]
    terms = [(labelled(path), CATALOG[path].words) for path in paths]
    terms += [
        ("p10, p90", "a tenth of the cells lie below p10, a tenth above p90"),
        ("distance", "Wasserstein's between the first and the last check's cells, over their spread: 1 is far"),
        ("tau", "Kendall's rank correlation of two checks' rankings: 1 the same order, 0 unrelated"),
        ("not settled", "cells that still drift or oscillate when their step response ends"),
        ("dead", "cells whose held-out activity has a standard deviation under 0.001"),
    ]
    listed = element("dl", *(f"{text('dt', term)}{text('dd', words)}" for term, words in terms))
    words = "Step and sine metrics say how cells behave. How much the network needs them is what the ablation measures."
    return element("section", text("h2", "How to read this"), text("p", words), listed, id="reading")
