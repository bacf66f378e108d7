"""What the scripts of `make test-trainers` share: their convention, data out of packages, and what they report.

A script trains one library's own LSTM through the library's public interface, with the monitor attached as that library
tells its users to attach such a thing, and asserts what came of it. It is a file `tests/trainers/with_<name>.py`: the
prefix is needed, since a file `skorch.py` beside it would be imported in place of skorch. It has

- a docstring whose first line is its title in `docs/trainers.md`,
- `REQUIRES = ["darts>=0.36"]`: what pip installs beside torch, the project with its extras `tensorboard` and `plots`,
  statsmodels and scikit-learn, which are always there. Scripts with the same list share an environment. An extra of
  the project is written `"lstm-monitor[lightning]"`,
- `MINUTES = 3`: roughly how long it takes, installing included; it is stopped after three times that,
- `FAST = True` where CI runs it: under a minute, with nothing big to install,
- `main() -> Results`, and the two lines `if __name__ == "__main__":` and `finish(main())`.

`REQUIRES`, `MINUTES` and `FAST` are plain literals: the runner reads them without running the script. A script may have
`ENVIRONMENT = {"KERAS_BACKEND": "jax"}`, which is set before Python starts. It is run in an empty temporary folder and
may write there: the folder is deleted afterwards. Run one by ``python tests/trainers/run.py darts_rnn``, or in an
environment of your own by ``python tests/trainers/with_darts_rnn.py``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

MARK = "RESULTS "  # what the line with the results starts with

T = TypeVar("T")


@dataclass(frozen=True)
class Ablation:
    """The score of the intact network in the ablation check, beside the library's own validation score.

    ``within`` is the relative difference that is allowed.
    """

    intact: float
    own: float
    within: float = 1e-4

    @property
    def difference(self) -> float:
        """|intact - own| over |own|."""
        return abs(self.intact - self.own) / max(abs(self.own), 1e-12)


@dataclass(frozen=True)
class Results:
    """What a script saw.

    ``library`` and ``version`` of what trained, ``model`` the network's name there, ``layers`` as the monitor names
    them, ``checks`` how many were made, ``values`` how many scalars arrived where the user looks, read back from there,
    ``where`` that is. ``untouched``: the weights and random states after the training were bit-identical to those of
    a training without the monitor. ``ablation`` is the comparison of scores, or the reason why there is none.
    """

    library: str
    version: str
    model: str
    layers: tuple[str, ...]
    checks: int
    values: int
    where: str
    untouched: bool
    ablation: Ablation | str
    notes: tuple[str, ...] = ()


def finish(results: Results) -> None:
    """Assert what has to hold for every library, and print the results as one line of JSON for the runner."""
    assert results.layers, "no layer was found"
    assert results.checks >= 2, f"{results.checks} checks ran, not at least the first and the last"
    assert results.values > 0, f"no value arrived in {results.where}"
    assert results.untouched, "the training differs from the one without the monitor"
    if isinstance(results.ablation, Ablation):
        assert results.ablation.difference <= results.ablation.within, results.ablation
    else:
        assert results.ablation, "ablation: give the reason why there is none"
    print(MARK + json.dumps(asdict(results)), flush=True)


def twice(train: Callable[[bool], T], weights: Callable[[T], Any] = lambda trained: trained) -> tuple[T, T, bool]:
    """Train without and with the monitor from the same seeds.

    Args:
        train: Builds the network, trains it and returns what the script needs; told whether to attach the monitor.
        weights: Gives the module, the state_dict or the list of arrays in what `train` returned; itself by default.

    Returns:
        What `train(False)` and `train(True)` returned, and whether weights and random states (torch, numpy, random)
        are bit-identical afterwards.
    """
    trained, states = [], []
    for monitored in (False, True):
        seed_all()
        trained.append(train(monitored))
        states.append(random_states())
    same = same_weights(weights(trained[0]), weights(trained[1])) and states[0] == states[1]
    return trained[0], trained[1], same


def seed_all(seed: int = 0) -> None:
    """Seed torch, numpy and random."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def random_states() -> tuple[Any, ...]:
    """The states of the generators of torch, numpy and random, to be compared by ==."""
    name, keys, *rest = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), (name, keys.tobytes(), *rest), random.getstate()


def same_weights(first: Any, second: Any) -> bool:
    """Whether two modules, dicts or sequences of tensors or arrays hold the same names and bit-identical values."""
    a, b = _arrays(first), _arrays(second)
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and a[name].shape == b[name].shape and a[name].tobytes() == b[name].tobytes()
        for name in a
    )


def _arrays(weights: Any) -> dict[str, np.ndarray]:
    if isinstance(weights, torch.nn.Module):
        weights = weights.state_dict()
    pairs = weights.items() if isinstance(weights, Mapping) else ((str(i), item) for i, item in enumerate(weights))
    return {name: _array(item) for name, item in pairs if isinstance(item, torch.Tensor | np.ndarray)}


def _array(item: torch.Tensor | np.ndarray) -> np.ndarray:
    return item.detach().cpu().numpy() if isinstance(item, torch.Tensor) else np.asarray(item)


def scalars_in(log_dir: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Our scalars in all TensorBoard files under `log_dir`, read back: key -> (step, value), in order."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, list[tuple[int, float]]] = {}
    for folder in sorted({path.parent for path in Path(log_dir).rglob("*tfevents*")}):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        for key in (tag for tag in events.Tags()["scalars"] if tag.startswith("lstm_monitor/")):
            found.setdefault(key, []).extend((event.step, event.value) for event in events.Scalars(key))
    return found


def checks_in(scalars: Mapping[str, list[tuple[int, float]]]) -> int:
    """How many checks the scalars tell of."""
    return int(max((value for _, value in scalars.get("lstm_monitor/_run/checks", [])), default=0))


def layers_in(scalars: Mapping[str, object]) -> tuple[str, ...]:
    """The names of the layers that the scalars tell of."""
    names = (key.split("/")[1] for key in scalars if key.count("/") >= 3)
    return tuple(sorted({name for name in names if name != "_run"}))


def count(scalars: Mapping[str, list[tuple[int, float]]]) -> int:
    """How many values there are."""
    return sum(map(len, scalars.values()))


def quick_check(**options: Any) -> Any:
    """An `AblationCheck` that takes a second or so: one ranking, few points; its intact score is the same as ever."""
    from lstm_monitor import AblationCheck

    return AblationCheck(**{"rankings": ("measured",), "random_orders": 2, "points": 4} | options)


def co2(length: int = 400) -> np.ndarray:
    """The last `length` weeks of the CO2 record of Mauna Loa, standardised: (length,) float32."""
    from statsmodels.datasets import co2 as record

    series = record.load_pandas().data["co2"].interpolate().to_numpy()[-length:]
    return ((series - series.mean()) / series.std()).astype(np.float32)


def windows(length: int = 400, past: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """The CO2 record as a forecast of the next week: inputs (N, past, 1) and targets (N, 1)."""
    series = torch.from_numpy(co2(length))
    cut = series.unfold(0, past + 1, 1)
    return cut[:, :-1, None].contiguous(), cut[:, -1:].contiguous()


def digits(size: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """The first `size` handwritten digits, read row by row: inputs (size, 8, 8) in 0 to 1 and labels (size,)."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(images[:size] / 16, dtype=torch.float32).unflatten(1, (8, 8))
    return inputs, torch.tensor(labels[:size], dtype=torch.long)
