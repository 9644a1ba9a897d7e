"""Two processes beside one, through us and through `transformers.Trainer`. `python -m tests.benchmarks.several --help`.

The same rows in the same order, as many a step: one process of eight chats, or two of four. A process has one thread.
Efficiency is the speed of two over twice that of one; overhead is what a step of two takes beyond half a step of one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks import report
from tests.benchmarks.compare import WORK, made
from tests.benchmarks.materials import BATCH, SHAPES
from tests.benchmarks.measure import Step, environment_for, log, watch
from tests.benchmarks.variants import Variant, prepare

SHARDED = ["--fsdp.enable_fsdp=true", "--fsdp.auto_wrap_policy=TRANSFORMER_BASED_WRAP"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


class Way(NamedTuple):
    """One way to train: whose trainer, in how many processes, and with which further flags."""

    peer: str
    processes: int
    flags: tuple[str, ...] = ()


WAYS = {
    "ours": Way("ours", 1),
    "ours, DDP": Way("ours", 2),
    "ours, FSDP": Way("ours", 2, tuple(SHARDED)),
    **{
        f"ours, ZeRO {stage}": Way(
            "ours", 2, ("--deepspeed.enable_deepspeed=true", f"--deepspeed.zero_stage=ZERO_{stage}")
        )
        for stage in (1, 2, 3)
        if find_spec("deepspeed")
    },
    "Trainer": Way("trainer", 1),
    "Trainer, DDP": Way("trainer", 2),
}


def main() -> int:
    """Train each way in turn and print the table."""
    given = parse_arguments()
    python, materials = made(given)
    steps = {name: train(name, materials, given.work / "several", python) for name in WAYS}
    facts = json.loads((materials / "materials.json").read_text())
    lines = [
        f"`{' '.join(['python -m tests.benchmarks.several', *sys.argv[1:]])}`\n",
        f"{report.machine()}. {report.versions(python)}.",
        f"Model {given.model}; {facts['rows']} chats, {facts['tokens']:,} tokens.",
        f"The first {given.warm} steps are left out.\n",
        *table(steps, given.warm),
    ]
    sys.stdout.write("\n".join([*lines, ""]))
    return 0


def train(name: str, materials: Path, work: Path, python: str) -> list[Step]:
    """Return the steps of a run."""
    way, output = WAYS[name], work / name.replace(", ", "-").replace(" ", "")
    shutil.rmtree(output, ignore_errors=True)
    job = prepare(Variant(way.peer, {"batch_size": BATCH // way.processes}), materials, output, python)
    command = [*job.command, *way.flags]
    if way.processes > 1:
        many = str(way.processes)
        command = [*command, "--nproc", many] if way.peer == "ours" else [command[0], *TORCHRUN, many, *command[1:]]
    environment, core = environment_for("1", output, {})
    steps = watch(command, job.lines, output / "output.log", environment, core if way.processes == 1 else None).steps
    log(f"{name}: {len(steps)} steps, the last loss {steps[-1].loss:.4f}")
    return steps


def table(steps: dict[str, list[Step]], warm: int) -> list[str]:
    """Return the rows; how many tokens a step has is known from our run in one process, which all share."""
    tokens = steps["ours"][-1].tokens - steps["ours"][warm - 1].tokens
    head = [
        "way",
        "tokens/s",
        "efficiency",
        "ms a step",
        "overhead, ms a step",
        "tokens/CPU s",
        "s to step 1",
        "last loss",
    ]
    rows = [head, ["---"] * len(head)]
    for name, own in steps.items():
        count = len(own) - warm
        seconds, cpu = own[-1].wall - own[warm - 1].wall, own[-1].cpu - own[warm - 1].cpu
        alone = steps["ours" if WAYS[name].peer == "ours" else "Trainer"]
        one = alone[-1].wall - alone[warm - 1].wall
        several = WAYS[name].processes > 1
        figures: list[Any] = [
            f"{tokens / seconds:.0f}",
            f"{one / (WAYS[name].processes * seconds):.2f}" if several else "-",
            f"{1000 * seconds / count:.0f}",
            f"{1000 * (seconds - one / WAYS[name].processes) / count:.0f}" if several else "-",
            f"{tokens / cpu:.0f}",
            f"{own[0].wall:.1f}",
            f"{own[-1].loss:.4f}",
        ]
        rows.append([name, *figures])
    return [f"| {' | '.join(row)} |" for row in rows]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=WORK, help="folder for materials, peers and results: %(default)s")
    parser.add_argument("--model", choices=SHAPES, default="small")
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps of eight chats")
    parser.add_argument("--warm", type=int, default=2, help="first steps that are not part of the speed")
    parser.add_argument("--peers-python", help="a Python that has the peers, instead of an environment made here")
    given = parser.parse_args()
    given.work = given.work.absolute()
    return given


if __name__ == "__main__":
    sys.exit(main())
