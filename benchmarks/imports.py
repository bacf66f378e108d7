"""What ``import lstm_monitor``, and the first use of its monitor, add to ``import torch``: fresh interpreters, medians.

Prints Markdown: the time of the process (user and system), which a busy machine disturbs less than the clock on the
wall, and that too; then the modules that take longest by themselves.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys

CASES = {
    "torch": "import torch",
    "torch, lstm_monitor": "import torch, lstm_monitor",
    "torch, lstm_monitor.integrations": "import torch, lstm_monitor.integrations",
    "torch, LSTMMonitor": "import torch; from lstm_monitor import LSTMMonitor",
    "torch, LSTMMonitor, no garbage collected": "import gc, torch; gc.disable(); from lstm_monitor import LSTMMonitor",
}
TIMED = """
import time
began = time.perf_counter()
{imports}
import json
print(json.dumps([time.process_time(), time.perf_counter() - began]))
"""


def seconds(imports: str) -> tuple[float, float]:
    """Of the process and on the wall, in a new interpreter."""
    script = [sys.executable, "-c", TIMED.format(imports=imports)]
    process, wall = json.loads(subprocess.run(script, check=True, capture_output=True, text=True).stdout)
    return process, wall


def slowest(count: int) -> list[tuple[float, str]]:
    """Milliseconds and names of the modules that come with us and take longest by themselves."""
    script = [sys.executable, "-X", "importtime", "-c", "import torch; from lstm_monitor import LSTMMonitor"]
    lines = subprocess.run(script, check=True, capture_output=True, text=True).stderr.splitlines()
    rows = [line.removeprefix("import time:").split("|") for line in lines if line.startswith("import time:")]
    names = [name.strip() for _, _, name in rows]
    ours = [(int(own) / 1e3, name.strip()) for own, _, name in rows[names.index("torch") + 1 :]]
    return sorted(ours, reverse=True)[:count]


def collection() -> float:
    """Seconds of one whole garbage collection after ``import torch``."""
    script = "import torch, gc, time; began = time.process_time(); gc.collect(); print(time.process_time() - began)"
    return float(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--modules", type=int, default=15, help="how many of the slowest modules to show")
    options = parser.parse_args()
    seconds(CASES["torch, LSTMMonitor"])  # writes the byte code
    rounds = [{name: seconds(imports) for name, imports in CASES.items()} for _ in range(options.repeats)]
    medians = {name: [statistics.median(found[name][i] for found in rounds) for i in range(2)] for name in CASES}
    print("| import | process | wall | more than torch |\n|---|---|---|---|")
    for name, (process, wall) in medians.items():
        print(f"| {name} | {process:.3f} s | {wall:.3f} s | {process - medians['torch'][0]:.3f} s |")
    print(
        f"\nThe garbage collection that is due after `import torch` takes {collection():.3f} s, {gc.get_threshold()}.\n"
    )
    print("| module | by itself |\n|---|---|")
    for milliseconds, name in slowest(options.modules):
        print(f"| {name} | {milliseconds:.1f} ms |")


if __name__ == "__main__":
    main()
