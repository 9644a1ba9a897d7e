"""Peak memory against the number of steps, ours and Trainer's. `python -m tests.benchmarks.long_runs --help`.

Every batch has another number of tokens, so a long run shows what a process keeps for each shape that it has seen. One
run of each variant gives all rows: the largest resident set so far is read when a step is done.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.benchmarks import report
from tests.benchmarks.compare import WORK
from tests.benchmarks.materials import BATCH, SHAPES
from tests.benchmarks.measure import ROOT, Watched, environment_for, log, watch
from tests.benchmarks.variants import VARIANTS, prepare


def main() -> None:
    """Run each variant once and print the table."""
    given = parse_arguments()
    machine, folder = report.machine(), given.work / "long_runs"
    materials = folder / f"{given.model}-{max(given.at)}"
    command = [sys.executable, "-m", "tests.benchmarks.materials", str(materials), "--model", given.model]
    subprocess.run([*command, "--rows", str(max(given.at) * BATCH)], cwd=ROOT, check=True)
    runs = {name: train(name, materials, given) for name in given.variants}
    figures = {name: run._asdict() | {"steps": [step._asdict() for step in run.steps]} for name, run in runs.items()}
    (folder / "long_runs.json").write_text(json.dumps(figures, indent=1))
    sys.stdout.write(f"`{' '.join(['python -m tests.benchmarks.long_runs', *sys.argv[1:]])}`\n\n")
    sys.stdout.write(f"{machine}. {report.versions(given.peers_python)}.\n\n{table(runs, given.at)}")


def train(name: str, materials: Path, given: argparse.Namespace) -> Watched:
    """Return a finished run of a variant."""
    variant, output = VARIANTS[name], given.work / "long_runs" / f"{given.threads}-{name}"
    shutil.rmtree(output, ignore_errors=True)
    job = prepare(variant, materials, output, given.peers_python)
    environment, core = environment_for(given.threads, output, variant.environment)
    run = watch(job.command, job.lines, output / "output.log", environment, core)
    log(f"{name}: {len(run.steps)} steps, {run.cpu:.0f} CPU s, at most {run.peak_bytes / 1e6:.0f} MB")
    return run


def table(runs: Mapping[str, Watched], moments: Sequence[int]) -> str:
    """Return the peak of each variant after so many steps, and at the end of the process, with its CPU seconds."""
    head = ["after step", *(f"{name}, peak MB" for name in runs)]
    rows = [head, ["---"] * len(head)]
    for moment in moments:
        rows.append([str(moment), *(f"{run.steps[moment - 1].peak_bytes / 1e6:.0f}" for run in runs.values())])
    rows.append(["end", *(f"{run.peak_bytes / 1e6:.0f}" for run in runs.values())])
    rows.append(["CPU s of the run", *(f"{run.cpu:.0f}" for run in runs.values())])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=WORK, help="folder for materials and results: %(default)s")
    parser.add_argument("--model", choices=SHAPES, default="small")
    parser.add_argument("--at", type=int, nargs="+", default=[24, 96, 200, 400], help="steps; the last ends the run")
    parser.add_argument("--threads", choices=["1", "all"], default="1")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["ours", "trainer"])
    parser.add_argument("--peers-python", default=sys.executable, help="a Python that has the peers: %(default)s")
    given = parser.parse_args()
    given.work = given.work.absolute()
    return given


if __name__ == "__main__":
    main()
