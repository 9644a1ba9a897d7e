"""One training run in a process of its own, watched from outside.

Every trainer writes a JSON line when an optimizer step is done. The watcher sees the line appear and reads the clocks
of the process and its children, so that no trainer is measured by code of its own, and all in the same way.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

ROOT = Path(__file__).parents[2]
LOOK_EVERY_SECONDS = 0.004


class Step(NamedTuple):
    """One optimizer step.

    Attributes:
        wall: Seconds since the process was started.
        cpu: CPU seconds of the process and its children since then.
        tokens: Tokens of the run so far, without padding.
        loss: Mean loss of the step.
        peak_bytes: Largest resident set of the process until then.
    """

    wall: float
    cpu: float
    tokens: int
    loss: float
    peak_bytes: int = 0


class Watched(NamedTuple):
    """A finished run: its steps, CPU and wall seconds of all of it, and its largest resident set in bytes."""

    steps: list[Step]
    cpu: float
    wall: float
    peak_bytes: int


def watch(command: Sequence[str], lines: Path, log_file: Path, environment: Mapping[str, str], core: int | None):
    """Run a command that writes its steps to `lines`; on one core if one is given.

    Raises:
        RuntimeError: The command failed; the message ends with what it said last.
    """
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    lines.unlink(missing_ok=True)
    with log_file.open("wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            [*pinned, *command], cwd=ROOT, env=dict(environment), stdout=output, stderr=subprocess.STDOUT
        )
        watcher = Watcher(process.pid, lines, started)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            watcher.look()
            time.sleep(LOOK_EVERY_SECONDS)
        wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}\nended with {process.returncode}:\n{log_file.read_text()[-3000:]}")
    return Watched(watcher.steps, usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss * 1024)


class Watcher:
    """Notes the clocks of a process when its file of steps grows."""

    def __init__(self, pid: int, lines: Path, started: float) -> None:
        self._process, self._lines, self._started = psutil.Process(pid), lines, started
        self._read = 0
        self.steps: list[Step] = []

    def look(self) -> None:
        """Take in the lines that are new; only one of them, if the watcher kept up."""
        try:
            if self._lines.stat().st_size == self._read:
                return
        except FileNotFoundError:
            return
        wall, cpu = time.perf_counter() - self._started, cpu_seconds(self._process)
        peak = peak_bytes(self._process)
        text = self._lines.read_bytes()
        whole = text[self._read : text.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            record: dict[str, Any] = json.loads(line)
            if record.get("loss") is not None:
                self.steps.append(Step(wall, cpu, record["tokens"], record["loss"], peak))


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU seconds of a process, of its children that live and of those that ended."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):  # a child that ended meanwhile is in its parent's figure
            total += sum(one.cpu_times()[:4])
    return total


def peak_bytes(process: psutil.Process) -> int:
    """Return the largest resident set of a process so far; what is resident now where the system keeps no peak."""
    status = Path(f"/proc/{process.pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return kilobytes[0] * 1024 if kilobytes else process.memory_info().rss


def rates(run: Watched, warm: int) -> dict[str, float]:
    """Return figures of a run; the first `warm` steps are not part of the speed."""
    first, last = run.steps[warm - 1], run.steps[-1]
    tokens = last.tokens - first.tokens
    return {
        "tokens_per_cpu_second": tokens / (last.cpu - first.cpu),
        "tokens_per_second": tokens / (last.wall - first.wall),
        "first_step_cpu_seconds": run.steps[0].cpu,
        "first_step_seconds": run.steps[0].wall,
        "run_cpu_seconds": run.cpu,
        "run_seconds": run.wall,
        "peak_megabytes": run.peak_bytes / 1e6,
    }


def environment_for(threads: str, output: Path, extra: Mapping[str, str]) -> tuple[dict[str, str], int | None]:
    """Return the environment of a run, and the core to pin it to; `threads` is "1" or "all".

    Caches lie in the run's own folder: nobody starts with what an earlier run left.
    """
    environment = dict(os.environ) | {
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HOME": str(output / "cache"),
        "XDG_CACHE_HOME": str(output / "cache"),
    }
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        environment.pop(name, None)
        if threads == "1":
            environment[name] = "1"
    return environment | dict(extra), max(os.sched_getaffinity(0)) if threads == "1" else None


def log(text: str) -> None:
    """Say something on standard error, at once."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
