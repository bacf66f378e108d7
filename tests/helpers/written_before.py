"""What an earlier version wrote: a Lightning training's history with weights, and its checkpoint with our state.

``python -m tests.helpers.written_before FOLDER`` writes such a folder with the version at hand; the one in
``tests/data`` is kept as it is, to be read by every later version.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lstm_monitor as lm
from tests.helpers.trainings import PACKAGES, callback, loader, modules, seed_all, trainer

FOLDER = Path(__file__).parents[1] / "data" / "written_before"


def fit(folder: Path, *, max_epochs: int = 2, **options: Any) -> tuple[Any, Any]:
    """The callback and the Trainer after a training with a check each epoch and an ablation check."""
    seed_all()
    sink = lm.HistorySink(folder / "history", save_weights=True)
    watch = callback(PACKAGES[0], sinks=[sink], ablation=True)
    run = trainer(PACKAGES[0], folder, watch, max_epochs=max_epochs)
    run.fit(modules(PACKAGES[0]).Plain(), loader(), loader(seed=1), **options)
    return watch, run


def write(folder: Path) -> None:
    """A history, a checkpoint, and the values as they were."""
    _, run = fit(folder)
    run.save_checkpoint(folder / "training.ckpt")
    history = lm.load_history(folder / "history")
    values = {
        "reports": {str(report.step): report.scalars() for report in history.reports()},
        "snapshots": {str(step): lm.characterize(history.snapshot(step)).scalars() for step in history.steps},
    }
    (folder / "values.json").write_text(f"{json.dumps(values)}\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
