"""One model trained by several methods on the same data, each in a process of its own: what each costs, and reaches.

    python -m tests.benchmarks.methods --model FOLDER [--steps 60] [--only lora,qlora]

`FOLDER` holds SmolLM2-135M-Instruct. The table is printed as Markdown; each method's command is in it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import Watched, environment_for, log, watch

RECIPE = "configs/recipes/smollm/sft/135m_faq/train.yaml"
WARM = 2
"""Logged steps that are not part of the speed."""
ALL = "--peft.lora_target_modules=all-linear"
ADAPTER = ("--peft.lora_r=16", "--peft.lora_alpha=32", ALL, "--training.learning_rate=5e-4")
METHODS: dict[str, tuple[str, ...]] = {
    "full": (),
    "lora": ADAPTER,
    "dora": (*ADAPTER, "--peft.peft_kwargs.use_dora=true"),
    "qlora": (*ADAPTER, "--peft.q_lora", "--peft.bnb_4bit_quant_type=nf4", "--peft.use_bnb_nested_quant"),
}
HEADER = "| method | parameters that train | validation loss before | after | peak MB | useful tokens/s | CPU s |"


def main() -> None:
    """Run the methods one after another, and print the table and the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the folder of SmolLM2-135M-Instruct")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", choices=("1", "all"), default="1")
    parser.add_argument("--only", default=",".join(METHODS), help="methods, separated by commas")
    options = parser.parse_args()
    rows, commands = [HEADER, "|---" * 7 + "|"], []
    with tempfile.TemporaryDirectory() as name:
        for method in options.only.split(","):
            command = command_of(method, options.model.absolute(), options.steps, Path(name) / method)
            log(f"{method} ...")
            rows.append(row(method, *measured(command, Path(name) / method, options.threads)))
            commands.append(f"oumi run {shlex.join(command[4:])}")
    sys.stdout.write("\n".join([*rows, "", *commands]) + "\n")


def command_of(method: str, model: Path, steps: int, output: Path) -> list[str]:
    """Return the command that trains by a method."""
    shared = (
        f"--model.model_name={model}",
        f"--training.output_dir={output}",
        f"--training.max_steps={steps}",
        f"--training.eval_steps={steps}",
        "--training.logging_steps=1",
    )
    return [sys.executable, "-m", "oumi_kernel", "run", RECIPE, *shared, *METHODS[method]]


def measured(command: list[str], output: Path, threads: str) -> tuple[dict[str, Any], float, list[Any], Watched]:
    """Return the record of a run, its validation loss before the first step, its metrics, and what was watched."""
    environment, core = environment_for(threads, output, {})
    beside = output.parent
    before = [*command, "--training.max_steps=1", "--training.eval_steps=1", "--training.learning_rate=0"]
    before += [
        f"--training.output_dir={output}-before",
        "--training.warmup_steps=0",
        "--training.save_final_model=false",
    ]
    watch(before, Path(f"{output}-before") / "metrics.jsonl", beside / "log", environment, core)
    watched = watch(command, output / "metrics.jsonl", beside / "log", environment, core)
    record = json.loads((output / "run.json").read_text())
    return record, _losses(Path(f"{output}-before"))[-1], _losses(output), watched


def row(method: str, record: dict[str, Any], before: float, losses: list[float], watched: Watched) -> str:
    """Return the line of a method."""
    first, last = watched.steps[WARM - 1], watched.steps[-1]
    speed = (last.tokens - first.tokens) / (last.wall - first.wall)
    figures = (before, losses[-1], watched.peak_bytes / 1e6, speed, watched.cpu)
    texts = (f"{value:.3f}" if value < 10 else f"{value:,.0f}" for value in figures)
    return f"| {method} | {trained(record):,} | " + " | ".join(texts) + " |"


def trained(record: dict[str, Any]) -> int:
    """Return how many parameters a run trained."""
    return int(record["model"]["trained"])


def _losses(folder: Path) -> list[float]:
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record["eval_loss"] for record in records if "eval_loss" in record]


if __name__ == "__main__":
    main()
