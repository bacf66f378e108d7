"""`make gpu`: is all of it right on a GPU, is the training untouched there, and how fast is it? As Markdown, on a page.

Every section runs in a process of its own, the most important first, and the page is written as they go. The exit
status is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from gpu.page import Page
from gpu.plan import PATIENCE, sections
from gpu.running import run

SECONDS = 460.0
"""For everything together, on a GPU."""
HEADINGS = {
    False: "lstm_monitor on a GPU",
    True: "A dry run on the CPU: nothing below was run or measured on a GPU",
}


def main() -> int:
    """Run all sections; 1 if anything failed."""
    options = _options()
    if find_spec("torch") is None:
        raise SystemExit(f"make gpu: {sys.executable} has no torch; name one that has: make gpu PYTHON=...")
    began = time.monotonic()
    until = time.monotonic() + options.seconds * (PATIENCE if options.dry_run else 1)
    page = Page(options.out / ("dry.md" if options.dry_run else "gpu.md"))
    page.heading(HEADINGS[options.dry_run], level=1)
    machine, *others = sections(dry=options.dry_run)
    run(machine, page, until)
    if page.tally.failed:
        instead = "" if options.dry_run else ": without a GPU there is only the dry run, `make gpu DRY=1`"
        page.words(f"Nothing else was run{instead}.")
        return 1
    for section in others:
        if options.only is None or options.only in section.title:
            run(section, page, until)
    _summarize(page, time.monotonic() - began, dry=options.dry_run)
    return 1 if page.tally.failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the page")
    parser.add_argument("--dry-run", action="store_true", help="everything small and on the CPU, to see that it runs")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for everything together")
    parser.add_argument("--only", help="only the sections with this in their titles")
    return parser.parse_args()


def _summarize(page: Page, seconds: float, *, dry: bool) -> None:
    """What passed, what failed, and the figures beside what they should be; in the file it comes first."""
    tally, since = page.tally, page.length
    page.heading("Summary")
    if tally.targets:
        page.table("Figures and what they should reach.", ["what", "found", "at most", "reached"])
        for name, found, most, reached in tally.targets:
            page.row([name, found, most, {None: "", True: "yes", False: "**no**"}[reached]])
    run_as = "a dry run on the CPU" if dry else "on the GPU"
    counts = f"{tally.passed} passed, {len(tally.failed)} failed, {tally.not_run} not run"
    page.words(f"{counts}, in {seconds:.0f} s ({run_as}).")
    for name in tally.failed:
        page.words(f"- failed: {name}")
    page.lead_with(since)
    print(f"This page is {page.path}.")


if __name__ == "__main__":
    raise SystemExit(main())
