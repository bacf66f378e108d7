"""Watch the cells of a policy while it learns to balance a pole, with RecurrentPPO of sb3-contrib.

CartPole comes with gymnasium. The only lines about the monitor are those with ``monitor``; held-out sequences are the
policy's own newest episodes.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env

from lstm_monitor.integrations import SB3LSTMMonitor


def main() -> None:
    """Train, and say what the cells do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=7, help="of 64 steps in 8 environments, twice")
    rollouts = parser.parse_args().rollouts
    torch.set_num_threads(1)
    monitor = SB3LSTMMonitor(every_n_epochs=5, budget=None)
    model = RecurrentPPO(
        "MlpLstmPolicy",
        make_vec_env("CartPole-v1", n_envs=8, seed=1),
        n_steps=64,
        batch_size=128,
        n_epochs=5,
        gamma=0.98,
        gae_lambda=0.8,
        learning_rate=2e-3,
        seed=1,
        device="cpu",
        policy_kwargs={"lstm_hidden_size": 16, "net_arch": []},
    )
    lengths: list[float] = []
    for _ in range(2):
        model.learn(rollouts * 64 * 8, callback=monitor, reset_num_timesteps=False)  # goes on
        lengths.append(float(np.mean([episode["l"] for episode in model.ep_info_buffer or []])))

    print(f"\nSteps that the pole stays up: {lengths[0]:.0f} half way, {lengths[1]:.0f} in the end\n")
    if monitor.report is not None:  # None with LSTM_MONITOR=off in the environment
        print(monitor.report.in_words())


if __name__ == "__main__":
    main()
