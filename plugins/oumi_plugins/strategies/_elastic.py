"""Starting the processes of a run through torch's elastic agent, and ending as the first of them that failed.

A request to stop is passed on to the processes, which agree on a step, leave a checkpoint and end; the agent itself
only ends processes whose peer has failed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from oumi_kernel import ProcessError
from oumi_kernel.launch import BEGAN, IDLE, LAUNCH, LAUNCHED_BY, STOP, Failure, Processes, first_failure

GRACE = 10
"""Seconds that processes have to end after one of them failed, before they are killed."""
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def launch(command: Sequence[str], processes: Processes) -> int:
    """Run `command` in every process until all are done or one failed; return the exit code.

    The first failure is the last thing written to stderr.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # its tables of exit codes
    with tempfile.TemporaryDirectory(prefix="oumi-launch-") as name:
        folder = Path(name)
        (folder / BEGAN).touch()
        os.environ |= {LAUNCH: name, LAUNCHED_BY: str(os.getpid())}
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // processes.per_node)))
        before = {number: signal.signal(number, lambda n, _: _forward(n, folder)) for number in FORWARDED}
        try:
            elastic_launch(_config(processes, folder), command[0])(*command[1:])
            failure = first_failure(folder) if (folder / IDLE).exists() else None
            if failure:  # it was begun anew to no purpose
                sys.stderr.write(failure.text)
                return failure.exit_code
        except ChildFailedError as error:
            failure = _first(folder, error)
            sys.stderr.write(failure.text)
            return failure.exit_code
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return 0


def _config(processes: Processes, folder: Path) -> LaunchConfig:
    several = processes.nodes > 1
    return LaunchConfig(
        min_nodes=processes.nodes,
        max_nodes=processes.nodes,
        nproc_per_node=processes.per_node,
        run_id="oumi" if several else uuid.uuid4().hex,
        rdzv_backend="static" if several else "c10d",
        rdzv_endpoint=processes.rendezvous if several else "localhost:0",
        rdzv_configs={"rank": processes.node_rank, "timeout": 900} if several else {},
        max_restarts=processes.max_restarts,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / "agent")),
        signals_to_handle="SIGQUIT",
        shutdown_timeout=GRACE,
    )


def _forward(number: int, folder: Path) -> None:
    (folder / STOP).touch()  # for a process that does not listen yet
    for file in folder.glob("process_*"):
        try:
            os.kill(int(file.read_text()), number)
        except (ProcessLookupError, ValueError):  # it ended, or is writing its number and looks at STOP next
            continue


def _first(folder: Path, error: ChildFailedError) -> Failure:
    """Return the failure that led to the others: a process that was killed says nothing, those that miss it do."""
    said = first_failure(folder)
    if said is None or (said.exit_code == ProcessError.exit_code and error.get_first_failure()[1].exitcode < 0):
        return _silent(error)
    return said


def _silent(error: ChildFailedError) -> Failure:
    """Return the failure of a process that could not say why it ended: it was killed, or never began."""
    rank, found = error.get_first_failure()
    code = found.exitcode
    if code >= 0:
        return Failure(rank, f"error: process {rank} ended with exit code {code} and said nothing.\n", code or 1)
    name = signal.Signals(-code).name
    hint = " The system does this where memory runs out." if -code == signal.SIGKILL else ""
    return Failure(rank, f"error: process {rank} was ended by {name}.{hint}\n", 128 - code)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
