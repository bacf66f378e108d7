"""lstm_monitor: watch recurrent cells while a network trains.

Method: R. Hasani et al., Response Characterization for Auditing Cell Dynamics in Long Short-term Memory Networks,
IJCNN 2019, arXiv 1809.03864.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lstm_monitor.ablation.contexts import ablated as ablated
    from lstm_monitor.capacity.asking import capacity_study as capacity_study
    from lstm_monitor.capacity.result import CapacityStudy as CapacityStudy
    from lstm_monitor.characterization import characterize as characterize
    from lstm_monitor.comparison.asking import compare_runs as compare_runs
    from lstm_monitor.comparison.result import RunComparison as RunComparison
    from lstm_monitor.custom.registry import register_cell as register_cell
    from lstm_monitor.custom.registry import unregister_cell as unregister_cell
    from lstm_monitor.drift import compare as compare
    from lstm_monitor.guard import MonitorWarning as MonitorWarning
    from lstm_monitor.history.kept import History as History
    from lstm_monitor.history.reading import load_history as load_history
    from lstm_monitor.history.sink import HistorySink as HistorySink
    from lstm_monitor.layer_report import LayerReport as LayerReport
    from lstm_monitor.layers import find_layers as find_layers
    from lstm_monitor.metrics.linear import frequency_response as frequency_response
    from lstm_monitor.metrics.measuring import measure as measure
    from lstm_monitor.monitor import LSTMMonitor as LSTMMonitor
    from lstm_monitor.pruning.thinning import prune as prune
    from lstm_monitor.ranking import rank as rank
    from lstm_monitor.ranks import together as together
    from lstm_monitor.reasons import Reason as Reason
    from lstm_monitor.reasons import Thresholds as Thresholds
    from lstm_monitor.records import Agreement as Agreement
    from lstm_monitor.records import Alarm as Alarm
    from lstm_monitor.records import CellWeights as CellWeights
    from lstm_monitor.records import Drift as Drift
    from lstm_monitor.records import Importance as Importance
    from lstm_monitor.records import LayerKey as LayerKey
    from lstm_monitor.records import LayerWeights as LayerWeights
    from lstm_monitor.records import Metric as Metric
    from lstm_monitor.records import Metrics as Metrics
    from lstm_monitor.records import OperatingPoint as OperatingPoint
    from lstm_monitor.records import Probe as Probe
    from lstm_monitor.records import Ranking as Ranking
    from lstm_monitor.records import Response as Response
    from lstm_monitor.records import Sequences as Sequences
    from lstm_monitor.records import Skipped as Skipped
    from lstm_monitor.records import Snapshot as Snapshot
    from lstm_monitor.records import Stimulus as Stimulus
    from lstm_monitor.report import Report as Report
    from lstm_monitor.responses import respond as respond
    from lstm_monitor.schedule import every as every
    from lstm_monitor.sensitivity.scores import first_order as first_order
    from lstm_monitor.sensitivity.scores import output_sensitivity as output_sensitivity
    from lstm_monitor.sensitivity.scores import taylor as taylor
    from lstm_monitor.sinks import MemorySink as MemorySink
    from lstm_monitor.sinks import Sink as Sink
    from lstm_monitor.snapshots import snapshot as snapshot
    from lstm_monitor.stimuli import default_stimuli as default_stimuli
    from lstm_monitor.stimuli import random_bank as random_bank
    from lstm_monitor.stimuli import sinusoid as sinusoid
    from lstm_monitor.stimuli import step as step
    from lstm_monitor.studies.asking import ablation_study as ablation_study
    from lstm_monitor.studies.check import AblationCheck as AblationCheck
    from lstm_monitor.study.records import Correlation as Correlation
    from lstm_monitor.study.records import Effects as Effects
    from lstm_monitor.study.records import LayerStudy as LayerStudy
    from lstm_monitor.study.records import Noise as Noise
    from lstm_monitor.study.records import Trial as Trial
    from lstm_monitor.study.study import Study as Study
    from lstm_monitor.watching import watch_optimizer as watch_optimizer

_WHERE = {
    "ablated": "ablation.contexts",
    "capacity_study": "capacity.asking",
    "CapacityStudy": "capacity.result",
    "characterize": "characterization",
    "compare_runs": "comparison.asking",
    "RunComparison": "comparison.result",
    "register_cell": "custom.registry",
    "unregister_cell": "custom.registry",
    "compare": "drift",
    "MonitorWarning": "guard",
    "History": "history.kept",
    "load_history": "history.reading",
    "HistorySink": "history.sink",
    "LayerReport": "layer_report",
    "find_layers": "layers",
    "frequency_response": "metrics.linear",
    "measure": "metrics.measuring",
    "LSTMMonitor": "monitor",
    "prune": "pruning.thinning",
    "rank": "ranking",
    "together": "ranks",
    "Reason": "reasons",
    "Thresholds": "reasons",
    "Agreement": "records",
    "Alarm": "records",
    "CellWeights": "records",
    "Drift": "records",
    "Importance": "records",
    "LayerKey": "records",
    "LayerWeights": "records",
    "Metric": "records",
    "Metrics": "records",
    "OperatingPoint": "records",
    "Probe": "records",
    "Ranking": "records",
    "Response": "records",
    "Sequences": "records",
    "Skipped": "records",
    "Snapshot": "records",
    "Stimulus": "records",
    "Report": "report",
    "respond": "responses",
    "every": "schedule",
    "first_order": "sensitivity.scores",
    "output_sensitivity": "sensitivity.scores",
    "taylor": "sensitivity.scores",
    "MemorySink": "sinks",
    "Sink": "sinks",
    "snapshot": "snapshots",
    "default_stimuli": "stimuli",
    "random_bank": "stimuli",
    "sinusoid": "stimuli",
    "step": "stimuli",
    "ablation_study": "studies.asking",
    "AblationCheck": "studies.check",
    "Correlation": "study.records",
    "Effects": "study.records",
    "LayerStudy": "study.records",
    "Noise": "study.records",
    "Trial": "study.records",
    "Study": "study.study",
    "watch_optimizer": "watching",
    "metrics": "metrics",
}
"""The module of every public name; it is imported when the name is first used: torch alone takes longer than all."""

__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    """Import what a public name stands for."""
    if name not in _WHERE:
        raise AttributeError(f"module 'lstm_monitor' has no attribute {name!r}")
    module = import_module(f"lstm_monitor.{_WHERE[name]}")
    value = globals()[name] = module if name == _WHERE[name] else getattr(module, name)
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted({*globals(), *_WHERE})
