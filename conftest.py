"""Rules of the whole test run: a skipped test fails it; browser tests need a Chromium, those of CUDA a GPU."""

import os
import shutil
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import pytest

# Small tensors on a shared machine: with two OpenMP threads a busy neighbour makes them hundreds of times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["tests.helpers.thorough"]

# No environment of this project's tests holds fastai: it needs a torchvision, which has no CPU build.
collect_ignore = [] if find_spec("fastai") else ["lstm_monitor/integrations/fastai_callback.py"]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many cases of the conformance suite are run."""
    words = "each two values of adapter, sink, kind and situation together in some case, or all cases"
    parser.addoption("--conformance", choices=("pairwise", "all"), default="pairwise", help=words)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the headless browser, for tests marked ``browser``."""
    if CHROMIUM is None:
        pytest.fail("the fixture `chromium` serves only tests marked with @pytest.mark.browser")
    return CHROMIUM


@cache
def has_cuda() -> bool:
    """Whether there is a GPU, or a dry run of `make gpu`, which does without."""
    import torch

    return torch.cuda.is_available() or os.environ.get("LSTM_MONITOR_DRY") == "1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the browser tests out where no Chromium is found, and those of CUDA where no GPU is."""
    left_out = [item for item in items if _is_left_out(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _is_left_out(item: pytest.Item) -> bool:
    if item.get_closest_marker("browser") and CHROMIUM is None:
        return True
    return item.get_closest_marker("cuda") is not None and not has_cuda()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Turn a passed session with skipped tests into a failed one."""
    if _skipped(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was left out and why skipped tests failed the session."""
    if CHROMIUM is None:
        terminalreporter.write_line("No Chromium was found: the browser tests were left out.")
    if not has_cuda():
        terminalreporter.write_line("No GPU was found: the tests of tests/cuda were left out.")
    if skipped := _skipped(config):
        names = ", ".join(sorted({report.nodeid for report in skipped}))
        terminalreporter.write_line(f"A skipped test is an error here: {names}", red=True)


def _skipped(config: pytest.Config) -> Sequence[pytest.TestReport]:
    """Reports of skipped tests and modules."""
    reporter = config.pluginmanager.getplugin("terminalreporter")
    return reporter.stats.get("skipped", []) if reporter else []
