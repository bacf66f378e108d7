"""The monitor as a callback of fastai."""

from __future__ import annotations

from fastai.callback.core import Callback
from fastai.torch_core import rank_distrib

from lstm_monitor.integrations._trainer_callback import Hosted


class FastaiLSTMMonitor(Hosted, Callback):  # type: ignore[misc]  # fastai has no types
    """Watches the recurrent layers of a fastai Learner's model while it trains.

    ``Learner(dls, model, cbs=FastaiLSTMMonitor(held_out=x_val, sinks=[TensorBoardSink("runs/a")]))``. Takes the options
    of `LSTMMonitor`, which is also where they are explained. Steps are training batches. Several fits of one model,
    as in ``fine_tune``, go on counting; the learning rate finder and ``validate`` are left alone.

    Raises:
        TypeError: an option that does not exist.
        ValueError: a value that is not allowed.
    """

    order = 10  # after fastai's own counting and mode switching
    run_valid = False

    def before_fit(self) -> None:
        """Close what an exception left open."""
        self.close()

    def before_train(self) -> None:
        """Begin with the first epoch that trains: `before_fit` is called for each validation too."""
        if not self._active and not hasattr(self.learn, "lr_finder") and not rank_distrib():
            model, last = self.learn.model, self.monitor
            self.begin(model, go_on=last is not None and last.model is model)
            self.first()

    def after_batch(self) -> None:
        """Count a step, and check if one is due."""
        self.stepped()

    def after_train(self) -> None:
        """Count an epoch, and check if one is due."""
        self.epoch_ended()

    def after_fit(self) -> None:
        """Make the last check and the ablation check, and close the sinks."""
        self.finish()
