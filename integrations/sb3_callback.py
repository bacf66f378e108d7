"""The monitor as a callback of Stable-Baselines3, for the recurrent policies of sb3-contrib."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor, nn

from lstm_monitor.integrations._trainer_callback import Hosted
from lstm_monitor.report.report import Report


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
            monitor.held_out, monitor.mask, monitor.forward = [batch], [mask], self.options.get("forward") or run_policy


LONGEST = 128  # steps of a sequence


class States(NamedTuple):
    """The states that actor and critic begin with, each ``(h, c)`` of ``(layers, N, H)``."""

    pi: tuple[Tensor, Tensor]
    vf: tuple[Tensor, Tensor]


class Batch(NamedTuple):
    """N sequences of T steps: observations and actions ``(N * T, ...)``, states, and no episode start ``(N * T,)``."""

    observations: Any
    actions: Tensor
    states: States
    starts: Tensor


@dataclass(frozen=True)
class _Piece:
    """Steps `begin` to `end` of one environment, all of one episode; `fresh` where that starts here."""

    env: int
    begin: int
    end: int
    fresh: bool


def sequences_of(buffer: Any, steps: int) -> tuple[Batch, Tensor] | None:
    """About so many steps of a rollout that has just ended, with a mask ``(N, T)``; None where it keeps no states.

    Sequences end with their episode, or after 128 steps; spread evenly over the rollout.
    """
    if not hasattr(buffer, "hidden_states_pi") or not hasattr(buffer, "episode_starts"):
        return None
    pieces = [piece for env in range(buffer.n_envs) for piece in _pieces(buffer.episode_starts[:, env], env)]
    pieces = pieces[:: max(1, sum(piece.end - piece.begin for piece in pieces) // steps)]
    length = max(piece.end - piece.begin for piece in pieces)
    mask = torch.tensor([[step < piece.end - piece.begin for step in range(length)] for piece in pieces])
    observations = buffer.observations
    flat = (
        {name: _cut(values, pieces, length) for name, values in observations.items()}
        if isinstance(observations, Mapping)
        else _cut(observations, pieces, length)
    )
    states = States(
        (_states(buffer.hidden_states_pi, pieces), _states(buffer.cell_states_pi, pieces)),
        (_states(buffer.hidden_states_vf, pieces), _states(buffer.cell_states_vf, pieces)),
    )
    return Batch(flat, _cut(buffer.actions, pieces, length), states, torch.zeros(mask.numel())), mask


def run_policy(policy: nn.Module, batch: Batch) -> Tensor:
    """The value of each state and the log-probability of the action taken there, ``(N, T, 2)``."""
    from gymnasium.spaces import Discrete

    actor: Any = policy
    actions = batch.actions.long().flatten() if isinstance(actor.action_space, Discrete) else batch.actions
    values, chances, _ = actor.evaluate_actions(batch.observations, actions, batch.states, batch.starts)
    count = batch.states.pi[0].shape[1]
    return torch.stack([values.flatten(), chances.flatten()], dim=-1).unflatten(0, (count, -1))


def _pieces(starts: NDArray[np.float32], env: int) -> Iterator[_Piece]:
    firsts = {0, *np.flatnonzero(starts).tolist()}
    ends = sorted({*firsts, len(starts)})
    for begin, end in pairwise(ends):
        for at in range(begin, end, LONGEST):
            yield _Piece(env, at, min(at + LONGEST, end), fresh=at == begin and bool(starts[begin]))


def _cut(values: NDArray[Any], pieces: list[_Piece], length: int) -> Tensor:
    """``(N * length, ...)`` out of ``(steps, envs, ...)``, the end of a shorter piece repeated."""
    rows = [np.minimum(np.arange(piece.begin, piece.begin + length), piece.end - 1) for piece in pieces]
    return torch.from_numpy(np.concatenate([values[row, piece.env] for row, piece in zip(rows, pieces, strict=True)]))


def _states(values: NDArray[np.float32], pieces: list[_Piece]) -> Tensor:
    """``(layers, N, H)`` out of ``(steps, layers, envs, H)``; zero where an episode starts."""
    rows = [values[piece.begin, :, piece.env] * (not piece.fresh) for piece in pieces]
    return torch.from_numpy(np.stack(rows, axis=1).astype(np.float32))
