"""How long commands take to answer, beside what importing torch alone takes. A script, not a test.

    python tests/benchmarks/startup.py [RUNS]

Commands alternate; the figures are medians and minima of wall seconds.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "oumi_kernel"]
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "oumi --version": [*PROGRAM, "--version"],
    "oumi --help": [*PROGRAM, "--help"],
    "oumi config validate": [*PROGRAM, "config", "validate", "configs/quickstart/train.yaml"],
    "oumi plugins list": [*PROGRAM, "plugins", "list"],
    "python -c 'import torch'": [sys.executable, "-c", "import torch"],
}


def main() -> None:
    """Time every command in turn."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs + 1):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - started)
    for name, all_times in seconds.items():
        times = all_times[1:]  # the first one fills the caches of the file system
        sys.stdout.write(f"{name:26} median {statistics.median(times):6.3f} s   least {min(times):6.3f} s\n")


if __name__ == "__main__":
    main()
