"""TensorBoard itself on a small real training: what it serves, and what a headless Chromium shows of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from tests.helpers import trainings

pytestmark = pytest.mark.browser
BLANK = 1000  # without charts there are at most 455 colours right of the side bar, with them over 5,000
CHARTS = (310, 64, 1200, 1000)
SWITCHES = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--virtual-time-budget=15000", "--window-size=1200,1000")  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short trainings, one of which has a Custom Scalars layout of its own."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("a", "b"):
        trainings.seed_all()
        logger = TensorBoardLogger(folder, name=name, version="")
        if name == "b":
            logger.experiment.add_custom_scalars({"mine": {"my loss": ["Multiline", ["loss_epoch"]]}})
        watch = trainings.callback("lightning.pytorch", pictures_every=1)
        trainer = trainings.trainer("lightning.pytorch", folder, watch, logger=logger, max_epochs=4)
        trainer.fit(trainings.modules("lightning.pytorch").Plain(), trainings.loader(), trainings.loader(1))
    return folder


@pytest.fixture(scope="module")
def address(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a TensorBoard of these runs listens, once it has read them."""
    log = tmp_path_factory.mktemp("log") / "stderr.txt"
    command = [sys.executable, "-W", "ignore", "-m", "tensorboard.main", "--logdir", str(runs), "--port", "0",
               "--load_fast", "false", "--samples_per_plugin", "images=200"]  # fmt: skip
    with log.open("w") as stderr, subprocess.Popen(command, stdout=stderr, stderr=stderr) as server:
        try:
            url = wait_for(lambda: re.search(r"http://\S+?:\d+/", log.read_text()), 60, log)[0]
            wait_for(lambda: len(get(url, "custom_scalars/layout").get("category", ())) == 4, 60, log)
            yield url
        finally:
            server.terminate()


def wait_for(found: Any, seconds: float, log: Path) -> Any:
    """What `found` returns as soon as it is true; AssertionError with TensorBoard's log if that takes too long."""
    end = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.3)
    return result


def get(url: str, path: str) -> Any:
    with urlopen(f"{url}data/plugin/{path}", timeout=30) as answer:
        return json.load(answer)


def test_the_layouts_of_all_runs_and_the_users_own_become_one(address):
    categories = {
        c["title"]: [x["title"] for x in c["chart"]] for c in get(address, "custom_scalars/layout")["category"]
    }
    mine = [title for title in categories if title.startswith("net.rnn.l0: its 6 cells")]
    assert len(mine) == 1
    assert len(categories[mine[0]]) == 6
    assert categories["mine"] == ["my loss"]


def test_every_chart_finds_its_scalars(address):
    tags = get(address, "scalars/tags")
    for category in get(address, "custom_scalars/layout")["category"]:
        for chart in category["chart"]:
            series = [tag for s in chart.get("margin", {}).get("series", ()) for tag in s.values()]
            for tag in [*chart.get("multiline", {}).get("tag", ()), *series]:
                assert {tag} <= tags["a"].keys() | tags["b"].keys()


def test_every_page_has_our_tags(address):
    endings = {
        "images": "pictures/bode",
        "distributions": "step/settling_time/cells_log10",
        "histograms": "step/peak_response/cells_log10",
        "scalars": "ranking/tau/previous",
        "text": "guide/text_summary",
    }
    for plugin, ending in endings.items():
        tags = get(address, f"{plugin}/tags")
        assert any(tag.endswith(ending) for tag in tags["a"]), plugin
        assert set(tags["a"]) == set(tags["b"])


@pytest.mark.parametrize(
    "page",
    ["custom_scalars", *[pytest.param(page, marks=pytest.mark.thorough) for page in ("distributions", "images")]],
)
def test_pages_show_charts(address, chromium, page, tmp_path):
    assert colours(chromium, f"{address}#{page}", tmp_path) > BLANK


def test_a_page_without_data_is_told_apart(address, chromium, tmp_path):
    assert colours(chromium, f"{address}#audio", tmp_path) < BLANK


def colours(chromium: str, url: str, folder: Path) -> int:
    """How many colours the part of a page has where charts are."""
    shot = folder / "shot.png"
    command = [chromium, *SWITCHES, f"--user-data-dir={folder / 'profile'}", f"--screenshot={shot}", url]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    with Image.open(shot) as picture:
        return len(picture.convert("RGB").crop(CHARTS).getcolors(maxcolors=10_000_000))
