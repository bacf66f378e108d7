"""The sequences of a rollout of sb3-contrib, as held-out data for the policy that made it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

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


def play(policy: nn.Module, batch: Batch) -> Tensor:
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
