"""Whether the cost of a run grows with its tokens, and with nothing else. `python -m tests.benchmarks.scaling --help`.

Two tables: one, two, four and eight times the rows; and rows of 128 to 2,048 tokens with the same tokens a step.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks import report
from tests.benchmarks.compare import WORK
from tests.benchmarks.materials import BATCH, LONGEST
from tests.benchmarks.measure import ROOT, environment_for, log, rates, watch
from tests.benchmarks.variants import Variant, prepare

TIMES = (1, 2, 4, 8)
LENGTHS = (128, 256, 512, 1024, 2048)
STEP_TOKENS = 4096


def main() -> None:
    """Run both series and print their tables."""
    given = parse_arguments()
    machine = report.machine()
    results = {"rows": by_rows(given), "lengths": by_length(given)}
    (given.work / "scaling.json").write_text(json.dumps(results, indent=1))
    command = " ".join(["python -m tests.benchmarks.scaling", *sys.argv[1:]])
    sys.stdout.write(f"`{command}`\n\n{machine}. {report.versions()}.\n\n")
    sys.stdout.write(table("times the rows", results["rows"]) + "\n")
    sys.stdout.write(table("tokens a row", results["lengths"]))


def by_rows(given: argparse.Namespace) -> list[dict]:
    """Return the figures of one, two, four and eight times as many chats."""
    return [train(given, times, rows=given.steps * BATCH * times, batch=BATCH) for times in TIMES]


def by_length(given: argparse.Namespace) -> list[dict]:
    """Return the figures of rows of one length each, `STEP_TOKENS` tokens a step."""
    batches = {length: STEP_TOKENS // length for length in LENGTHS}
    return [train(given, n, rows=given.steps * batches[n], batch=batches[n], length=n) for n in LENGTHS]


def train(given: argparse.Namespace, name: int, *, rows: int, batch: int, length: int = 0) -> dict:
    """Return the figures of one run; of `length` tokens a row if it is given."""
    folder = given.work / "scaling" / (f"length-{length}" if length else f"rows-{rows}")
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "tests.benchmarks.materials", str(folder / "materials"), "--model", given.model]
    command += ["--rows", str(rows), *(["--length", str(length), "--full"] if length else [])]
    subprocess.run(command, cwd=ROOT, check=True)
    output = folder / "run"
    job = prepare(Variant("ours", {"batch_size": batch}), folder / "materials", output, "", length or LONGEST)
    environment, core = environment_for(given.threads, output, {})
    watched = watch(job.command, job.lines, output / "output.log", environment, core)
    figures = {"name": name, "rows": rows, "tokens": watched.steps[-1].tokens} | rates(watched, warm=1)
    log(f"{folder.name}: {figures}")
    return figures


def table(what: str, runs: Sequence[dict]) -> str:
    """Return a table: where cost grows with the tokens, the last two columns are the same in every row.

    "steps" is the cost of a token between the first step and the last; "run" that of the tokens which a run has more
    than the one above it, their preparation included.
    """
    head = (what, "rows", "tokens", "tokens/CPU s", "run CPU s", "peak MB", "steps, CPU ms/token", "run, CPU ms/token")
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for above, run in zip([None, *runs], runs, strict=False):
        more = run["tokens"] - above["tokens"] if above else 0
        seconds = run["run_cpu_seconds"] - above["run_cpu_seconds"] if above else 0.0
        cells = [
            f"{run['name']:,}",
            f"{run['rows']:,}",
            f"{run['tokens']:,}",
            f"{run['tokens_per_cpu_second']:.0f}",
            f"{run['run_cpu_seconds']:.1f}",
            f"{run['peak_megabytes']:.0f}",
            f"{1000 / run['tokens_per_cpu_second']:.3f}",
            f"{1000 * seconds / more:.3f}" if more else "-",
        ]
        lines.append(" | ".join(cells))
    return "".join(f"| {line} |\n" for line in lines)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=WORK, help="folder for materials and results: %(default)s")
    parser.add_argument("--model", default="small")
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps of the shortest run")
    parser.add_argument("--threads", choices=["1", "all"], default="1")
    given = parser.parse_args()
    given.work = given.work.absolute()
    return given


if __name__ == "__main__":
    main()
