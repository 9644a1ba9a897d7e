"""Random faults, one after another, in a run of two processes: its parameters are those of a calm run.

`OUMI_SOAK_FAULTS=50 OUMI_SOAK_SEED=1 pytest tests/strategies/test_soak.py` has fifty of them.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.strategies import test_ddp as ddp
from tests.strategies.test_ddp import Start, batches, find_worker

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(sys.platform != "linux", reason="limits of running processes are Linux's"),
]
start = ddp.start
FAULTS = int(os.environ.get("OUMI_SOAK_FAULTS", "3"))
SEED = int(os.environ.get("OUMI_SOAK_SEED", "0"))
LIMIT = 100_000
"""Bytes of a file from which on a process finds its disk full: less than a checkpoint's weights."""
METRIC = """
import time

def slowly(predictions, labels):
    '''Takes its time, so that a fault meets a run that is not over.'''
    time.sleep(0.05)
    return 0.0
"""


def kill(worker: int) -> None:
    os.kill(worker, signal.SIGKILL)


def terminate(worker: int) -> None:
    os.kill(worker, signal.SIGTERM)


def fill_disk(worker: int) -> None:
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (LIMIT, LIMIT))


def slow_down(worker: int) -> None:
    os.kill(worker, signal.SIGSTOP)
    time.sleep(1.5)
    os.kill(worker, signal.SIGCONT)


def test_a_run_with_random_faults_ends_with_the_parameters_of_a_calm_one(tmp_path: Path, start: Start) -> None:
    (tmp_path / "slowly.py").write_text(METRIC)
    flags = (
        *("--nproc", "2", "--max-restarts", "1000", "--plugin=./slowly.py:slowly"),
        *("--training.metrics_function=slowly", "--training.eval_steps=1", "--training.save_steps=3"),
        *(f"--training.max_steps={20 + 8 * FAULTS}", *batches(4), "--training.try_resume_from_last_checkpoint"),
    )
    metrics, chance = tmp_path / "out/metrics.jsonl", random.Random(SEED)
    run, done = Heard(start("out", *flags)), 0
    for _ in range(FAULTS):
        run.after_progress(metrics)
        time.sleep(chance.random())
        fault: Callable[[int], None] = chance.choice([kill, terminate, fill_disk, slow_down])
        rank = 0 if fault is fill_disk else chance.randrange(2)
        worker = run.worker(rank)
        with suppress(ProcessLookupError):  # it failed with the others just now
            fault(worker)
        done += 1
        if fault is terminate and run.ends(worker, rank, metrics):
            assert run.ended() in (143, 6)  # 6: it could not save, its disk being full
            run = Heard(start("out", *flags))
    assert run.ended() == 0, run.said()
    assert done == FAULTS
    calm = Heard(start("calm", *flags))
    assert calm.ended() == 0, calm.said()
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "calm"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


class Heard:
    """A run whose messages are read while it goes on: more of them than a pipe holds would stop it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process, self._lines = process, list[str]()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        self._lines.extend(self._process.stderr)

    def said(self) -> str:
        return "".join(self._lines[-200:])

    def ended(self) -> int:
        """Wait until it is over, and return its exit code."""
        code = self._process.wait(timeout=300)
        self._reader.join()
        return code

    def after_progress(self, metrics: Path) -> None:
        """Wait until a step was done after now, by processes that are both there."""
        before, ends = _state(metrics), time.monotonic() + 300
        while _state(metrics) == before:
            assert self._process.poll() is None, self.said()
            assert time.monotonic() < ends, self.said()
            time.sleep(0.02)

    def worker(self, rank: int) -> int:
        """Return the process of a rank, which there may not be for a moment while all are begun anew."""
        found, ends = find_worker(self._process, rank), time.monotonic() + 300
        while found is None:
            assert time.monotonic() < ends, self.said()
            time.sleep(0.02)
            found = find_worker(self._process, rank)
        return found

    def ends(self, worker: int, rank: int, metrics: Path) -> bool:
        """Return whether the run ends after a process was asked to stop.

        Where the others were failing at that moment, or it did not listen yet, all are begun anew and train. Where all
        stopped they are begun anew, too, but to no purpose.
        """
        before = None
        while self._process.poll() is None:
            is_another = find_worker(self._process, rank) not in (None, worker)
            before = before or (_state(metrics) if is_another else None)
            if before and before != _state(metrics):
                return False
            time.sleep(0.02)
        return True


def _state(file: Path) -> tuple[int, int]:
    if not file.exists():
        return 0, 0
    found = file.stat()
    return found.st_mtime_ns, found.st_size
