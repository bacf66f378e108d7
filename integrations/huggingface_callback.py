"""The monitor as a callback of Hugging Face's Trainer."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lstm_monitor.integrations._trainer_callback import Hosted, MonitorOptions
from lstm_monitor.report.keys import PREFIX
from lstm_monitor.report.report import Report
from lstm_monitor.snapshots.outputs import output_tensor


class HuggingFaceLSTMMonitor(Hosted, TrainerCallback):
    """Watches the recurrent layers of a model that Hugging Face's Trainer trains.

    ``Trainer(..., callbacks=[HuggingFaceLSTMMonitor(held_out=batch, sinks=[TensorBoardSink("runs/a")])])``. Takes the
    options of `LSTMMonitor`, which is also where they are explained. A batch for `held_out` is what the Trainer gives
    the model, such as ``collator([dataset[i] for i in range(32)])``; its output is the first tensor that is no loss.
    Steps are the Trainer's global steps: one an update of the weights, whatever the accumulation.

    With ``report_to="wandb"`` reports go to that run, with ``"tensorboard"`` into ``<output_dir>/runs/lstm_monitor``.
    What is remembered is kept in the checkpoints' trainer state, and taken up by ``resume_from_checkpoint``.
    ``metric_for_best_model`` may be a key of ours.

    Args:
        name: tells several such callbacks of one Trainer apart in checkpoints.
        **options: the options of `LSTMMonitor`.

    Raises:
        TypeError: an option that does not exist.
        ValueError: a value that is not allowed.
    """

    left_out = (*Hosted.left_out, "_state")

    def __init__(self, name: str = PREFIX, **options: Unpack[MonitorOptions]) -> None:
        """See the class."""
        options.setdefault("output", logits)
        super().__init__(**options)
        self.name = name

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Begin in the first process, or go on where the checkpoint was written; then the first check."""
        if not state.is_world_process_zero:
            return
        self._state = state
        packed = _callback_states(state).get(self.name)
        self.begin(model, state.global_step, int(state.epoch or 0))
        if packed and state.global_step > 0:
            self.do("Reading the checkpoint", lambda: self.load_state_dict(unpack(packed["attributes"]["packed"])))
        self.do("Reaching the loggers", lambda: self._reach_loggers(args))
        self.first()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Check if a number of optimizer steps is due."""
        self.stepped(state.global_step)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count an epoch, and check if one is due."""
        self.epoch_ended()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Give the value that picks the best model, where that is one of ours."""
        key = (args.metric_for_best_model or "").removeprefix("eval_")
        if metrics is not None and key.startswith(f"{PREFIX}/"):
            mode = "max" if args.greater_is_better else "min"
            metrics |= {f"eval_{name}": value for name, value in self.watched({key: mode}).items()}

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the last check and the ablation check, and close the sinks."""
        self.finish()

    def show(self, report: Report) -> None:
        """Into the state that the next checkpoint keeps."""
        _callback_states(self._state)[self.name] = {"args": {}, "attributes": {"packed": pack(self.state_dict())}}

    def _reach_loggers(self, args: TrainingArguments) -> None:
        given = [type(sink).__name__ for sink in self.options.get("sinks", ())]
        if self.monitor is None:
            return
        if "tensorboard" in (args.report_to or ()) and "TensorBoardSink" not in given:
            from lstm_monitor.integrations import TensorBoardSink

            self.monitor.sinks.append(TensorBoardSink(os.path.join(str(args.output_dir), "runs", PREFIX)))
        if "wandb" in (args.report_to or ()) and "WandbSink" not in given:
            import wandb

            from lstm_monitor.integrations import WandbSink

            if wandb.run is not None:
                self.monitor.sinks.append(WandbSink(wandb.run))


def logits(result: Any) -> Tensor:
    """What a model of Hugging Face's kind gives besides its loss: the first tensor that is no single number."""
    values: Sequence[Any] = list(result.values()) if isinstance(result, Mapping) else [result]
    if isinstance(result, tuple):
        values = result
    rest = [value for value in values if not (isinstance(value, Tensor) and value.dim() == 0)]
    return output_tensor(rest)


def pack(state: Mapping[str, Any]) -> str:
    """Plain values and tensors as text, since the Trainer keeps its state as JSON."""
    file = io.BytesIO()
    torch.save(dict(state), file)
    return base64.b64encode(file.getvalue()).decode("ascii")


def unpack(text: str) -> dict[str, Any]:
    """The reverse of `pack`."""
    state: dict[str, Any] = torch.load(io.BytesIO(base64.b64decode(text)), weights_only=True)
    return state


def _callback_states(state: TrainerState) -> dict[str, Any]:
    kept: Any = state.stateful_callbacks
    return kept if isinstance(kept, dict) else {}
