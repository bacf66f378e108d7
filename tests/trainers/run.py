"""Trains with each library in a small environment of its own, and says what the monitor saw: `make test-trainers`.

``python tests/trainers/run.py`` runs every script, with ``--fast`` those that CI runs, or those that are named. An
environment is made once and kept in ``.venv-trainers``. What a script has to do is in the docstring of `common.py`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from _environment import CannotInstallError, environment
from _scripts import Outcome, Script, run, scripts
from _table import as_text, write


def main() -> int:
    """Run what is asked for; 1 where any of it fails."""
    options = parse()
    outcomes = []
    for script in chosen(options.names, fast=options.fast):
        outcomes.append(train(script, options))
        print(as_text(outcomes[-1:]), flush=True)
    failed = [outcome.script.name for outcome in outcomes if outcome.results is None]
    took = sum(outcome.seconds for outcome in outcomes)
    print(f"\n{len(outcomes)} scripts in {took / 60:.0f} minutes; failed: {', '.join(failed) or 'none'}")
    if options.write:
        write(outcomes)
    return 1 if failed else 0


def train(script: Script, options: argparse.Namespace) -> Outcome:
    """Run one script in its environment; what cannot be installed is a failure, too."""
    began = time.monotonic()
    try:
        here = Path(sys.executable)
        python = here if options.python else environment(script.requires, fresh=options.fresh, newest=options.newest)
    except CannotInstallError as error:
        return Outcome(script, None, f"cannot be installed:\n{error}", time.monotonic() - began)
    return run(script, python, keep=options.keep)


def chosen(names: Sequence[str], *, fast: bool) -> list[Script]:
    """The scripts of these names, or all, or the fast ones.

    Raises:
        SystemExit: a name that no script has.
    """
    known = {script.name: script for script in scripts()}
    unknown = sorted(set(names) - known.keys())
    if unknown:
        raise SystemExit(f"no script {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in names or known if known[name].fast or not fast]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help="scripts, such as darts_rnn; all by default")
    parser.add_argument("--fast", action="store_true", help="only those that CI runs")
    parser.add_argument("--newest", action="store_true", help="the newest releases, not those of constraints.txt")
    parser.add_argument("--write", action="store_true", help="enter the results into docs/trainers.md")
    parser.add_argument("--fresh", action="store_true", help="make the environments anew")
    parser.add_argument("--keep", action="store_true", help="keep what a script wrote, and say where")
    parser.add_argument("--python", action="store_true", help="use the environment that runs this, install nothing")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
