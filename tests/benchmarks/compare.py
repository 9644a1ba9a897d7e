"""The same training through us, `transformers.Trainer` and TRL, in turn. `python -m tests.benchmarks.compare --help`.

Same model, data, batches in the same order, optimizer and number of steps; the tuned Trainer and the packed runs make
batches of their own. Held-out loss is computed by one evaluator on each saved model. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.benchmarks import peers_environment, report
from tests.benchmarks.materials import BATCH, SHAPES
from tests.benchmarks.measure import ROOT, environment_for, log, rates, watch
from tests.benchmarks.variants import REFERENCE, VARIANTS, prepare

WORK = Path.home() / ".cache/oumi-kernel-benchmarks"


def main() -> int:
    """Compare, print the tables, and leave all figures as JSON; 1 if a run failed or its batches were others."""
    given = parse_arguments()
    python, materials = made(given)
    results = {
        "command": " ".join(["python -m tests.benchmarks.compare", *sys.argv[1:]]),
        "machine": report.machine(),
        "versions": report.versions(python),
        "materials": json.loads((materials / "materials.json").read_text()) | {"model": given.model},
        "warm_steps": given.warm,
        "held_out_before": held_out(materials, materials / "model"),
        "runs": [],
    }
    for threads in given.threads:
        for repeat in range(given.repeats):
            for name in given.variants:
                run = one_run(name, threads, repeat, materials, given, python)
                results["runs"].append({"variant": name, "threads": threads, "repeat": repeat} | run)
                given.json.write_text(json.dumps(results, indent=1))
    sys.stdout.write(report.markdown(results))
    log(f"all figures: {given.json}")
    return int(bool(report.failures(results)))


def made(given: argparse.Namespace) -> tuple[str, Path]:
    """Return a Python that has the peers, and the folder of model and chats; both are made where they are not there."""
    given.work.mkdir(parents=True, exist_ok=True)
    python = given.peers_python or peers_environment.create(given.work / "peers")
    materials = given.work / f"{given.model}-{given.steps}"
    command = [sys.executable, "-m", "tests.benchmarks.materials", str(materials), "--model", given.model]
    subprocess.run([*command, "--rows", str(given.steps * BATCH)], cwd=ROOT, check=True)
    return python, materials


def one_run(name: str, threads: str, repeat: int, materials: Path, given: argparse.Namespace, python: str) -> dict:
    """Return the figures of one run, or why there are none."""
    variant, output = VARIANTS[name], given.work / "runs" / f"{given.model}-{threads}-{name}"
    shutil.rmtree(output, ignore_errors=True)
    job = prepare(variant, materials, output, python)
    environment, core = environment_for(threads, output, variant.environment)
    load = os.getloadavg()[0]
    try:
        watched = watch(job.command, job.lines, output / "output.log", environment, core)
        figures = rates(watched, given.warm)
        loss = None if repeat else held_out(materials, job.output)
    except (RuntimeError, IndexError, subprocess.CalledProcessError) as error:
        log(f"{threads} thread {name}: {error}")
        return {"error": str(error)}
    log(
        f"{threads} thread, {name}: {figures['tokens_per_cpu_second']:.0f} tokens per CPU second, "
        f"{figures['tokens_per_second']:.0f} per second, held-out loss {loss}"
    )
    return figures | {"held_out": loss, "load": load, "steps": [step._asdict() for step in watched.steps]}


def held_out(materials: Path, model: Path) -> float:
    """Return the held-out loss of a saved model, computed in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.held_out", str(materials), str(model)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return float(done.stdout)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=WORK, help="folder for materials, peers and results: %(default)s")
    parser.add_argument("--model", choices=SHAPES, default="small")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps of eight chats")
    parser.add_argument("--warm", type=int, default=2, help="first steps that are not part of the speed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", nargs="+", choices=["1", "all"], default=["1", "all"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--peers-python", help="a Python that has the peers, instead of an environment made here")
    parser.add_argument("--json", type=Path, help="where all figures go: WORK/MODEL.json")
    given = parser.parse_args()
    given.work = given.work.absolute()
    given.json = given.json or given.work / f"{given.model}.json"
    if REFERENCE not in given.variants:
        parser.error(f"--variants: {REFERENCE} is what the others are compared with; name it too")
    if not 1 <= given.warm < given.steps:
        parser.error("--warm: at least 1, and fewer than --steps")
    return given


if __name__ == "__main__":
    sys.exit(main())
