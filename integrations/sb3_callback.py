"""The monitor as a callback of Stable-Baselines3, for the recurrent policies of sb3-contrib."""

from __future__ import annotations

from stable_baselines3.common.callbacks import BaseCallback

from lstm_monitor.integrations._hosted import Hosted
from lstm_monitor.integrations._sb3_rollouts import play, sequences_of
from lstm_monitor.report import Report


class SB3LSTMMonitor(Hosted, BaseCallback):
    """Watches the recurrent layers of a policy while it learns: ``model.learn(..., callback=SB3LSTMMonitor())``.

    Takes the options of `LSTMMonitor`, which is also where they are explained. Stable-Baselines3 updates a policy
    between two rollouts and calls nobody meanwhile: an epoch is the learning from one rollout, a step one of the
    algorithm's updates (``train/n_updates``), and checks are made when a rollout has ended. The first one therefore
    comes after the first rollout, before any learning.

    Held-out data are the sequences of the newest rollout, from episode start to episode end, with the states that the
    policy had; its output is the value of each state and the log-probability of the action taken. Policies that keep
    no such states need `held_out`. Scalars go to the algorithm's own logger too, all but the console.

    Raises:
        TypeError: an option that does not exist.
        ValueError: a value that is not allowed.
    """

    finds_held_out = True
    left_out = (*Hosted.left_out, "model", "locals", "globals", "parent")
    parent = None  # for a copy

    def _on_training_start(self) -> None:
        updates = self._updates()
        self.begin(self.model.policy, updates, go_on=updates > 0)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.do("Taking held-out data", self._take_held_out)
        self.first()
        self._count()

    def _on_training_end(self) -> None:
        self._count()
        self.finish()

    def show(self, report: Report) -> None:
        """Into the algorithm's logger, whose console would be flooded."""
        for key, value in report.scalars().items():
            self.logger.record(key, value, exclude=("stdout", "log"))

    def _updates(self) -> int:
        return int(getattr(self.model, "_n_updates", 0))

    def _count(self) -> None:
        if self.monitor is not None and self._updates() > self.monitor.steps:
            self.stepped(self._updates())
            self.epoch_ended()

    def _take_held_out(self) -> None:
        monitor = self.monitor
        if monitor is None or self.options.get("held_out") is not None:
            return
        found = sequences_of(getattr(self.model, "rollout_buffer", None), monitor.held_out_steps)
        if found is not None:
            batch, mask = found
            monitor.held_out, monitor.mask, monitor.forward = [batch], [mask], self.options.get("forward") or play
