import subprocess
import sys

import pytest

import lstm_monitor.integrations as integrations

LIBRARIES = (
    "fastai", "ignite", "keras", "lightning", "matplotlib", "pandas", "pyarrow", "pytorch_lightning", "skorch",
    "stable_baselines3", "tensorboard", "transformers", "wandb",
)  # fmt: skip
EXTRAS = {
    "FastaiLSTMMonitor": ("fastai", "fastai"),
    "HuggingFaceLSTMMonitor": ("transformers", "huggingface"),
    "IgniteLSTMMonitor": ("ignite", "ignite"),
    "SB3LSTMMonitor": ("stable_baselines3", "sb3"),
    "SkorchLSTMMonitor": ("skorch", "skorch"),
}


def test_importing_imports_no_library() -> None:
    asked = f"import sys, lstm_monitor.integrations; print([name for name in {LIBRARIES} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", EXTRAS)
def test_a_missing_library_says_what_installs_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library, extra = EXTRAS[name]
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf'pip install "lstm-monitor\[{extra}\]"'):
        getattr(integrations, name)


def test_every_name_is_known() -> None:
    assert dir(integrations) == sorted(integrations.__all__)
    assert set(EXTRAS) < set(integrations.__all__)
    with pytest.raises(AttributeError, match="SB3LSTMMonitor"):
        integrations.Monitor  # noqa: B018
