"""Any other program on the same chats, measured from the outside as whole runs of two lengths.

    python -m tests.benchmarks.external TEMPLATE --steps 10 40 -- COMMAND ...

In the template and in the command, {model}, {data}, {rows}, {output} and {config} are replaced: the folder of the
model, the folder of the materials, the chats in the order of training, the output folder, and the template as it was
filled in. The difference of the two runs is that of their steps alone: the start of the program is in both.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.compare import WORK, held_out
from tests.benchmarks.materials import BATCH, SHAPES
from tests.benchmarks.measure import ROOT, Watched, environment_for, watch


def main() -> None:
    """Run a program on few and on many chats, and print its speed between the two."""
    given = parse_arguments()
    few, many = (one_run(given, steps) for steps in given.steps)
    tokens = many["tokens"] - few["tokens"]
    figures = {
        "tokens_per_cpu_second": tokens / (many["run"].cpu - few["run"].cpu),
        "tokens_per_second": tokens / (many["run"].wall - few["run"].wall),
        "run_cpu_seconds": [few["run"].cpu, many["run"].cpu],
        "peak_megabytes": many["run"].peak_bytes / 1e6,
        "held_out": many["held_out"],
    }
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")


def one_run(given: argparse.Namespace, steps: int) -> dict:
    """Return the tokens, the clocks and the held-out loss of one run."""
    materials, output = given.work / f"{given.model}-{steps}", given.work / f"external-{steps}"
    command = [sys.executable, "-m", "tests.benchmarks.materials", str(materials), "--model", given.model]
    subprocess.run([*command, "--rows", str(steps * BATCH)], cwd=ROOT, check=True)
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    config = output / "config.yaml"
    values = {
        "{model}": materials / "model",
        "{data}": materials,
        "{rows}": materials / "in_order.jsonl",
        "{output}": output,
        "{config}": config,
    }
    config.write_text(filled(given.template.read_text(), values))
    environment, core = environment_for(given.threads, output, {})
    words = [filled(word, values) for word in given.command]
    run: Watched = watch(words, output / "steps.jsonl", output / "output.log", environment, core)
    tokens = json.loads((materials / "materials.json").read_text())["tokens"]
    return {"tokens": tokens, "run": run, "held_out": held_out(materials, output)}


def filled(text: str, values: dict[str, Path]) -> str:
    """Return a text with its placeholders replaced."""
    for name, value in values.items():
        text = text.replace(name, str(value))
    return text


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("template", type=Path, help="the program's configuration, with placeholders")
    parser.add_argument("command", nargs="+", help="the command, with placeholders, after --")
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--model", choices=SHAPES, default="small")
    parser.add_argument("--steps", type=int, nargs=2, default=[10, 40], help="optimizer steps of the two runs")
    parser.add_argument("--threads", choices=["1", "all"], default="1")
    given = parser.parse_args()
    given.work = given.work.absolute()
    return given


if __name__ == "__main__":
    main()
