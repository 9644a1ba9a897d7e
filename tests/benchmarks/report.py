"""Figures into tables: medians with least and most, and which ratios count.

python -m tests.benchmarks.report RESULTS.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.variants import REFERENCE, RIVALS, VARIANTS

CHECKED_STEPS = 3
LOSS_TOLERANCE = 1e-3
"""Largest difference in the loss of each of the first steps that float32 runs on the same batches may have."""

HELD_OUT_TOLERANCE = {True: 0.002, False: 0.02}
"""Largest relative difference of held-out losses that is noise: of the same batches, and of others."""

LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "trl")
FIGURES = {
    "tokens_per_second": ("tokens/s", 0),
    "first_step_cpu_seconds": ("CPU s to step 1", 1),
    "first_step_seconds": ("s to step 1", 1),
    "run_cpu_seconds": ("run CPU s", 1),
    "peak_megabytes": ("peak MB", 0),
}
SPEED = "tokens_per_cpu_second"


def markdown(results: Mapping[str, Any]) -> str:
    """Return everything that was measured as a page of markdown."""
    materials = results["materials"]
    lines = [
        f"`{results['command']}`",
        "",
        f"{results['machine']}. {results['versions']}.",
        f"Model {materials['model']}; {materials['rows']} chats, {materials['tokens']:,} tokens, the longest "
        f"{materials['longest']}; padded batches are {materials['padding']:.0%} padding. The first "
        f"{results['warm_steps']} steps are left out of the speed. Held-out loss before training: "
        f"{results['held_out_before']:.4f}. Median, with least and most in brackets.",
    ]
    for threads in dict.fromkeys(run["threads"] for run in results["runs"]):
        lines += ["", "One thread:" if threads == "1" else "All threads:", "", *table(results, threads)]
    return "\n".join([*lines, ""])


def table(results: Mapping[str, Any], threads: str) -> list[str]:
    """Return the rows of one table; the ratios are those of tokens per CPU second."""
    runs = grouped(results, threads)
    rivals = {rival: title for rival, title in RIVALS.items() if rival in runs}
    head = ["variant", "tokens/CPU s", *rivals.values(), *(title for title, _ in FIGURES.values()), "held-out", "note"]
    rows = [head, ["---"] * len(head)]
    for name, own in runs.items():
        note = problem(name, runs)
        if any("error" in run for run in own):
            rows.append([name, *["-"] * (len(head) - 2), note])
            continue
        rows.append(
            [
                name,
                spread(own, SPEED, 0),
                *(ratio(name, rival, runs, SPEED) for rival in rivals),
                *(spread(own, figure, digits) for figure, (_, digits) in FIGURES.items()),
                f"{own[0]['held_out']:.4f}",
                note or ("" if VARIANTS[name].same_batches else "other batches"),
            ]
        )
    return [f"| {' | '.join(row)} |" for row in rows]


def grouped(results: Mapping[str, Any], threads: str) -> dict[str, list[dict[str, Any]]]:
    """Return the runs of each variant, the first repeat first."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for run in results["runs"]:
        if run["threads"] == threads:
            runs.setdefault(run["variant"], []).append(run)
    return runs


def problem(name: str, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return why the ratio of a variant does not count; empty if it does."""
    variant = VARIANTS[name]
    own, reference = runs[name][0], runs.get(variant.against, runs[REFERENCE])[0]
    errors = [run["error"] for run in (*runs[name], reference) if "error" in run]
    if errors:
        lines = errors[0].strip().splitlines()
        telling = [line.strip() for line in lines if "error[" in line or "Error: " in line]
        return f"failed: {[*lines, *telling][-1]}"
    if variant.same_batches and variant.float32:
        pairs = list(zip(own["steps"], reference["steps"], strict=False))[:CHECKED_STEPS]
        furthest = max(abs(a["loss"] - b["loss"]) for a, b in pairs)
        if furthest > LOSS_TOLERANCE or len(own["steps"]) != len(reference["steps"]):
            return f"does not count: other batches (losses of the first steps differ by {furthest:.1e})"
    if not isinstance(own["held_out"], float) or not isinstance(reference["held_out"], float):
        return "does not count: held-out loss unknown"
    difference = own["held_out"] / reference["held_out"] - 1
    if abs(difference) > HELD_OUT_TOLERANCE[variant.same_batches]:
        return f"does not count: held-out loss differs by {difference:.1%}"
    return ""


def failures(results: Mapping[str, Any]) -> list[str]:
    """Return what must not be: runs that failed, and runs on batches that should have been the reference's."""
    threads = dict.fromkeys(run["threads"] for run in results["runs"])
    tables = [grouped(results, which) for which in threads]
    return [why for runs in tables for name in runs if (why := problem(name, runs))]


def ratio(name: str, other: str, runs: Mapping[str, Sequence[Mapping[str, Any]]], figure: str) -> str:
    """Return the median ratio of runs of the same repeat; in brackets where it does not count."""
    pairs = [(a, b) for a, b in zip(runs[name], runs.get(other, []), strict=False) if figure in a and figure in b]
    if name == other or not pairs:
        return "-"
    text = f"{statistics.median(a[figure] / b[figure] for a, b in pairs):.2f}"
    return f"({text})" if problem(name, runs) else text


def spread(runs: Sequence[Mapping[str, Any]], figure: str, digits: int) -> str:
    """Return the median of a figure, with the least and the most."""
    values = [run[figure] for run in runs]
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} [{min(values):.{digits}f}-{max(values):.{digits}f}]"


def machine() -> str:
    """Return what the figures were measured on."""
    information = Path("/proc/cpuinfo")
    text = information.read_text() if information.exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, load {load} at the start"


def versions(peers_python: str | None = None) -> str:
    """Return the versions of what is compared, ours and the peers'."""
    code = (
        "import json, sys\nfrom importlib.metadata import version, PackageNotFoundError\nfound = {}\n"
        "for name in sys.argv[1:]:\n    try: found[name] = version(name)\n    except PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    texts = [f"Python {platform.python_version()}"]
    for who, python in {"ours": sys.executable, "peers": peers_python}.items():
        if python:
            command = [python, "-c", code, "oumi-kernel", *LIBRARIES]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            texts.append(f"{who}: {', '.join(f'{name} {number}' for name, number in found.items())}")
    return "; ".join(texts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print the tables of a benchmark's results.")
    parser.add_argument("results", type=Path, help="the JSON file that tests.benchmarks.compare wrote")
    sys.stdout.write(markdown(json.loads(parser.parse_args().results.read_text())))
