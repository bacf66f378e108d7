"""Drift: how far each metric's distribution over the cells moved between two checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, overload

from lstm_monitor.core.records import Drift, Metrics
from lstm_monitor.core.terms import LayerKey
from lstm_monitor.metrics.distributions import Values, ascending_rows, quantile_rows, relative_distances


class CheckedLayer(Protocol):
    """One layer of a report."""

    @property
    def key(self) -> LayerKey:
        """Its name."""
        ...

    @property
    def metrics(self) -> Metrics:
        """What was measured of it."""
        ...


class Checked(Protocol):
    """What has layers with metrics: a `lstm_monitor.Report`, which stands above this module."""

    @property
    def layers(self) -> Sequence[CheckedLayer]:
        """The layers of one check."""
        ...


@overload
def compare(now: Metrics, earlier: Metrics) -> tuple[Drift, ...]: ...


@overload
def compare(now: Checked, earlier: Checked) -> dict[str, tuple[Drift, ...]]: ...


def compare(now: Any, earlier: Any) -> tuple[Drift, ...] | dict[str, tuple[Drift, ...]]:
    """The drift of every metric that both checks of a layer have; of two reports, that of every layer in both.

    The distance is Wasserstein's over the cells, divided by their pooled p90 - p10: 1 means that the distribution
    moved by its own spread (this project's definition). NaN if fewer than two cells are defined in either check, or
    if the pooled spread is 0 and the distributions differ; 0 if they are equal.

    Args:
        now: the metrics of a layer, or a report.
        earlier: those of an earlier check.

    Returns:
        A `Drift` for each metric; of two reports a dict of these by the layer's name.

    Raises:
        TypeError: the two are neither metrics nor reports.
        ValueError: the two are of different layers.
    """
    if isinstance(now, Metrics) and isinstance(earlier, Metrics):
        return _compare_metrics(now, earlier)
    layers, then = _metrics_by_layer(now), _metrics_by_layer(earlier)
    if layers is None or then is None:
        raise TypeError(
            f"now={type(now).__name__} and earlier={type(earlier).__name__} cannot be compared; give two reports, or "
            "the metrics of one layer in two reports, such as report['rnn.l0'].metrics"
        )
    return {name: _compare_metrics(metrics, then[name]) for name, metrics in layers.items() if name in then}


def _metrics_by_layer(report: Any) -> dict[str, Metrics] | None:
    """The metrics of each layer by its name; None for what is no report."""
    layers = getattr(report, "layers", None)
    if not isinstance(layers, Sequence) or not all(isinstance(getattr(x, "metrics", None), Metrics) for x in layers):
        return None
    return {str(layer.key): layer.metrics for layer in layers}


def _compare_metrics(now: Metrics, earlier: Metrics) -> tuple[Drift, ...]:
    if now.key != earlier.key:
        raise ValueError(f"earlier={earlier.key} is another layer than now={now.key}; compare checks of one layer")
    shared = [item for item in now.items if item.path in earlier]
    if not shared:
        return ()
    ours = ascending_rows([item.cells for item in shared])
    theirs = ascending_rows([earlier[item.path].cells for item in shared])
    columns = relative_distances(ours, theirs).tolist(), _triples(ours), _triples(theirs)
    return tuple(Drift(item.path, *found) for item, *found in zip(shared, *columns, strict=True))


def _triples(rows: Values) -> list[tuple[float, float, float]]:
    return [(low, middle, high) for low, middle, high in quantile_rows(rows).tolist()]
