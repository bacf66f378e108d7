import copy
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv

import lstm_monitor as lm
from lstm_monitor.integrations import SB3LSTMMonitor
from lstm_monitor.integrations.sb3_callback import LONGEST, run_policy, sequences_of
from tests.helpers.hosting import STRICT, Closing, places, quick, studies, warned_once
from tests.helpers.trainings import differences, random_states, seed_all

KEY = "lstm_monitor/lstm_actor.l0/activity/std/p50"


class Pictures(gym.Wrapper[Any, Any, Any, Any]):
    """CartPole in two parts by name, and pushed by a number."""

    def __init__(self) -> None:
        super().__init__(gym.make("CartPole-v1"))
        part = gym.spaces.Box(-9, 9, (2,), np.float32)
        self.observation_space = gym.spaces.Dict({"place": part, "speed": part})
        self.action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, **options: Any) -> Any:
        seen, info = self.env.reset(**options)
        return self.parts(seen), info

    def step(self, action: Any) -> Any:
        seen, *rest = self.env.step(int(action[0] > 0))
        return self.parts(seen), *rest

    def parts(self, seen: Any) -> dict[str, Any]:
        return {"place": seen[::2].clip(-9, 9), "speed": seen[1::2].clip(-9, 9)}


def learner(environment: Any = "CartPole-v1", policy: str = "MlpLstmPolicy", **network: Any) -> RecurrentPPO:
    seed_all()
    made = DummyVecEnv([lambda: gym.make(environment) if isinstance(environment, str) else environment()] * 2)
    sizes = {"lstm_hidden_size": 6, "net_arch": [8]} | network
    return RecurrentPPO(policy, made, n_steps=32, batch_size=32, n_epochs=2, seed=1, policy_kwargs=sizes, device="cpu")


def learned(*callbacks: BaseCallback, steps: int = 128, **options: Any) -> RecurrentPPO:
    return learner(**options).learn(steps, callback=list(callbacks))


def trace(model: RecurrentPPO) -> dict[str, Any]:
    return {
        "weights": model.policy.state_dict(),
        "optimizer": model.policy.optimizer.state_dict(),
        "random": random_states(),
        "modes": [part.training for part in model.policy.modules()],
        "observations": torch.as_tensor(model._last_obs),
    }


def test_the_training_is_the_same_and_is_watched() -> None:
    sink = Closing()
    watching = SB3LSTMMonitor(sinks=[sink], ablation=quick(None), **STRICT)
    assert differences(trace(learned()), trace(learned(watching))) == []
    assert places(sink) == [(0, 0), (2, 1), (4, 2)]
    assert (studies(sink), sink.closed) == (1, 1)
    assert watching.report is not None
    assert [str(layer.key) for layer in watching.report.layers] == ["lstm_actor.l0", "lstm_critic.l0"]
    assert {layer.point_source for layer in watching.report.layers} == {"held_out"}
    assert {layer.ranking.name for layer in watching.report.layers} == {"output_sensitivity"}


def test_values_are_in_the_algorithms_own_log_and_not_on_its_console(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = learner()
    model.set_logger(configure(str(tmp_path), ["stdout", "csv"]))
    model.learn(128, callback=SB3LSTMMonitor(**STRICT))
    model.logger.close()
    logged = pd.read_csv(tmp_path / "progress.csv")
    assert logged[KEY].notna().all()
    assert "time/fps" in logged
    assert "std" not in capsys.readouterr().out


def test_held_out_sequences_run_as_the_policy_did() -> None:
    model = learner()
    seen: list[Any] = []

    class Watching(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            buffer = model.rollout_buffer
            batch, mask = sequences_of(buffer, 10_000)
            with torch.no_grad():
                seen.append((run_policy(model.policy, batch), mask, buffer.values.copy(), buffer.log_probs.copy()))

    model.learn(128, callback=Watching())
    for output, mask, values, chances in seen:
        assert mask.sum() == values.size
        assert mask.shape[1] <= LONGEST
        np.testing.assert_allclose(output[mask][:, 0], values.T.reshape(-1), atol=1e-5)
        np.testing.assert_allclose(output[mask][:, 1], chances.T.reshape(-1), atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"environment": Pictures, "policy": "MultiInputLstmPolicy"},
        {"shared_lstm": True, "enable_critic_lstm": False, "n_lstm_layers": 2},
        {"enable_critic_lstm": False},
    ],
)
def test_other_policies(options: dict[str, Any]) -> None:
    watching = SB3LSTMMonitor(**STRICT)
    learned(watching, steps=64, **options)
    assert watching.report is not None
    assert watching.report.checks == 2
    assert {layer.point_source for layer in watching.report.layers} == {"held_out"}


def test_learning_on_goes_on_and_another_policy_begins_anew() -> None:
    sink = lm.MemorySink()
    watching = SB3LSTMMonitor(sinks=[sink], **STRICT)
    model = learned(CallbackList([watching]), steps=64)
    model.learn(64, callback=watching, reset_num_timesteps=False)
    assert places(sink) == [(0, 0), (2, 1), (4, 2)]
    learned(watching, steps=64)
    assert places(sink)[3:] == [(0, 0), (2, 1)]


def test_nothing_recurrent_is_one_warning() -> None:
    def run(*callbacks: BaseCallback) -> PPO:
        seed_all()
        model = PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, n_epochs=1, seed=1, device="cpu")
        return model.learn(64, callback=list(callbacks))

    watched = warned_once(lambda: run(SB3LSTMMonitor()))
    assert differences(watched.policy.state_dict(), run().policy.state_dict()) == []


class Failing(BaseCallback):
    def _on_step(self) -> bool:
        if self.num_timesteps > 80:
            raise KeyboardInterrupt
        return True


def test_copies_and_ctrl_c() -> None:
    sink = Closing()
    watching = SB3LSTMMonitor(sinks=[sink], **STRICT)
    for _ in range(2):
        for other in (copy.deepcopy(watching), pickle.loads(pickle.dumps(watching))):
            learned(other, steps=64)
            assert other.report.checks == 2
        with pytest.raises(KeyboardInterrupt):
            learned(watching, Failing())
    assert sink.closed == 1
    watching.close()
    assert sink.closed == 2
    assert places(sink) == [(0, 0), (0, 0)]
