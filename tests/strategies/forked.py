"""Runs of several processes with what they import imported once: `python -m tests.strategies.forked FILE MODULE...`.

The file holds a list of runs, each with a `config` file, `flags`, and the number of `processes`; one with `call` does
not train, but calls a function `MODULE:NAME` with the loaded configuration, and has what that returns. All modules are
imported, and then each process of each run is a fork of this one, with the environment that a launcher would give it.
What each came to is written beside the file, as `RUN-RANK.json`: the exit code, the message, and on Linux the largest
resident set in bytes, with what was imported.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oumi_kernel.errors import OumiError
from oumi_kernel.loading import load_config
from oumi_kernel.loading.overrides import split_overrides
from oumi_kernel.plugins import resolve, scan
from oumi_kernel.run import run_training

ROOT = Path(__file__).parents[2]
IMPORTED_ONCE = ("transformers", "oumi_plugins.strategies._fsdp", "oumi_plugins.trainers._sft", "peft")
"""What most runs import."""


def main(file: Path, modules: list[str]) -> None:
    """Do the runs."""
    for module in modules:
        importlib.import_module(module)
    for number, run in enumerate(json.loads(file.read_text())):
        port, size = _free_port(), run["processes"]
        children = [_start(file.parent / f"{number}-{rank}.json", run, rank, port) for rank in range(size)]
        for child in children:
            os.waitpid(child, 0)


def outcomes(folder: Path, runs: Sequence[Mapping[str, Any]], modules: Sequence[str], seconds: int) -> list[Any]:
    """Do runs one after another, and return what came of the first process of each, with what all said in `stderr`."""
    (folder / "runs.json").write_text(json.dumps(runs))
    command = [sys.executable, "-m", "tests.strategies.forked", str(folder / "runs.json"), *modules]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OUMI_CACHE_DIR": str(folder / "cache")}
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert ended.returncode == 0, ended.stderr
    found = [json.loads((folder / f"{number}-0.json").read_text()) for number in range(len(runs))]
    return [outcome | {"stderr": ended.stderr} for outcome in found]


def _start(place: Path, run: dict[str, Any], rank: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    size = str(run["processes"])
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=size, MASTER_ADDR="localhost", MASTER_PORT=str(port)
    )
    faulthandler.dump_traceback_later(run.get("seconds", 240), exit=True)  # says where it hangs
    try:
        found = _outcome(run)
    except Exception:  # noqa: BLE001 - whatever it is, the test is to see it
        traceback.print_exc()
        found = {"exit_code": 1, "error": traceback.format_exc()}
    place.write_text(json.dumps(found | {"peak": _peak()}))
    sys.stderr.flush()
    os._exit(0)


def _outcome(run: dict[str, Any]) -> dict[str, Any]:
    overrides, _ = split_overrides(run["flags"])
    try:
        loaded = load_config(Path(run["config"]), overrides)
        if "call" in run:
            module, _, name = run["call"].partition(":")
            return {"exit_code": 0, "error": "", **getattr(importlib.import_module(module), name)(loaded)}
        run_training(loaded, resolve(loaded, scan(), world_size=run["processes"]))
    except OumiError as error:
        return {"exit_code": error.exit_code, "error": str(error)}
    return {"exit_code": 0, "error": ""}


def _peak() -> int | None:
    """Return the largest resident set of this process; `ru_maxrss` would begin with that of the one that started it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
