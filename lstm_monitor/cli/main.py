"""The command ``lstm-monitor``."""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lstm_monitor.history.comparison.trajectory import Course

FEWEST, MOST = 60, 120
"""Letters a line, whatever the terminal."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default those of the process; returns the exit code.

    0: done; 1: an error, of which one line is written to stderr; 2: wrong usage.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        asked = _parser().parse_args(argv)
    except SystemExit as stop:  # argparse has written its words
        return int(stop.code or 0)
    try:
        for line in asked.run(asked):
            print(line)
        print(end="", flush=True)
    except BrokenPipeError:  # `| head` has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # whatever is wrong with a file is one line for people
        print(f"lstm-monitor: {_one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _one_line(error: Exception) -> str:
    words = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    expected = isinstance(error, ValueError | TypeError | OSError | LookupError | ImportError)
    return " ".join(f"{'' if expected and words else f'{type(error).__name__}: '}{words}".split())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("lstm-monitor", description="What the cells of an LSTM, GRU or RNN do.")
    parser.add_argument("--version", action="version", version=f"lstm-monitor {_version()}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_report(commands)
    _add_compare(commands)
    _add_characterize(commands)
    return parser


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    words = "how a run went, from its history"
    parser = commands.add_parser("report", help=words, description=f"Shows {words}.")
    parser.add_argument("run_dir", metavar="RUN_DIR", help="the folder of a run or of its history (or a URL)")
    parser.add_argument("--step", type=int, metavar="N", help="as it was at the check of step N")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one self-contained page with the pictures")
    parser.add_argument("--attempt", metavar="ID", help="as an earlier attempt left it, which a later one superseded")
    parser.set_defaults(run=_report)


def _add_compare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    words = "two or more runs side by side, the first being what the others are compared with"
    parser = commands.add_parser("compare", help=words, description=f"Shows {words}.")
    parser.add_argument("first", metavar="A", help="the folder of a run or of its history (or a URL)")
    parser.add_argument("others", metavar="B", nargs="+", help="another one, or several")
    parser.set_defaults(run=_compare)


def _add_characterize(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    words = "measure and rank the cells of a checkpoint, by its recurrent weights"
    parser = commands.add_parser("characterize", help=words, description=f"{words.capitalize()}.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="of torch.save, Lightning or safetensors")
    kinds = ("lstm", "gru", "rnn_tanh", "rnn_relu")
    parser.add_argument("--kind", choices=kinds, help="what layers are whose weights allow several readings")
    parser.add_argument("--layers", default="*", metavar="GLOB", help="only layers of such names, as 'encoder.*'")
    parser.add_argument("--rank-by", default="auto", metavar="NAME", help="a metric, or std_x_outgoing")
    parser.add_argument("--prefix", default="", metavar="NAME", help="only weights below it, as 'model.encoder'")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one self-contained page with the pictures")
    unsafe = "load what is refused otherwise; runs code of whoever made the file"
    parser.add_argument("--unsafe-pickle", action="store_true", help=unsafe)
    parser.set_defaults(run=_characterize)


def _report(asked: argparse.Namespace) -> Iterator[str]:
    from lstm_monitor.history.comparison.comparing import course_of_run
    from lstm_monitor.history.loading import load_history

    history = load_history(asked.run_dir, asked.attempt)
    if asked.step is not None and asked.step not in history.steps:
        known = sorted((step for step in history.steps if step is not None), key=lambda step: abs(step - asked.step))
        words = f"the nearest are {', '.join(map(str, known[:3]))}" if known else "no check here has a step"
        raise ValueError(f"there is no check at --step {asked.step}; {words}")
    return _shown(course_of_run(history, str(asked.run_dir), asked.step), asked.html)


def _compare(asked: argparse.Namespace) -> Iterator[str]:
    from lstm_monitor.history.comparison.comparing import compare_runs
    from lstm_monitor.history.comparison.words import comparison_lines

    return comparison_lines(compare_runs([asked.first, *asked.others]), _width())


def _characterize(asked: argparse.Namespace) -> Iterator[str]:
    from lstm_monitor.cli.checkpoint import characterize_checkpoint
    from lstm_monitor.history.comparison.trajectory import course_of

    options = {name: getattr(asked, name) for name in ("kind", "layers", "rank_by", "prefix", "unsafe_pickle")}
    found = characterize_checkpoint(asked.checkpoint, **options)
    return _shown(course_of([found.report], asked.checkpoint, found.notes), asked.html)


def _shown(course: Course, html: Path | None) -> Iterator[str]:
    from lstm_monitor.cli.terminal import report_lines

    if html is None:
        return report_lines(course, _width(), _bold(), **_blocks())
    from lstm_monitor.history.page.page import write_page

    write_page(course, html)
    return iter([f"wrote {html} ({html.stat().st_size / 1e6:.1f} MB)"])


def _width() -> int:
    return max(FEWEST, min(MOST, shutil.get_terminal_size().columns))


def _bold() -> Callable[[str], str]:
    """Bold in a terminal, plain elsewhere and where the user wants no colours."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return str
    return lambda words: f"\x1b[1m{words}\x1b[0m"


def _blocks() -> dict[str, str]:
    """What draws courses, where the output cannot show blocks."""
    from lstm_monitor.cli.terminal import ASCII_BLOCKS, BLOCKS

    try:
        BLOCKS.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return {"blocks": ASCII_BLOCKS}
    return {}


def _version() -> str:
    try:
        return version("lstm-monitor")
    except PackageNotFoundError:  # the working tree on the path, not installed
        return "(not installed)"
