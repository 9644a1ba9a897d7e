"""Processes: which one this is, how many there are to be, and who of them failed first.

A run of several processes is started by its strategy (hook `oumi_launch`), or by a launcher such as torchrun (see
`oumi_kernel.launchers`).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from oumi_kernel.contracts import World
from oumi_kernel.errors import ConfigError, StopRequested
from oumi_kernel.launchers import launcher_of

LAUNCH = "OUMI_LAUNCH"
"""Set for processes that `oumi run` started: the folder in which each leaves its process number, and the first that
fails the reason."""

LAUNCHED_BY = "OUMI_LAUNCHED_BY"
"""Set for them, too: the process that started them."""

BEGAN = "began"
"""A file in that folder, written once."""

STOP = "stop"
"""A file there once the run was asked to stop: nothing is begun after that."""

IDLE = "idle"
"""A file there once a process was begun after that nevertheless, and did nothing."""


class Processes(msgspec.Struct, frozen=True, kw_only=True):
    """How many processes a run is to have, and how those of several machines find each other.

    Attributes:
        per_node: Processes on this machine.
        nodes: Machines.
        node_rank: Which of them this is, from 0.
        rendezvous: `host:port` of the first machine; empty on a single one.
        max_restarts: How often all processes are started anew after one failed.
    """

    per_node: int
    nodes: int = 1
    node_rank: int = 0
    rendezvous: str = ""
    max_restarts: int = 0

    @property
    def size(self) -> int:
        """Processes on all machines."""
        return self.per_node * self.nodes


class Failure(msgspec.Struct, frozen=True):
    """Why a process ended: its rank, what is said to the user, and the exit code."""

    rank: int
    text: str
    exit_code: int


def world_from(environment: Mapping[str, str] = os.environ) -> World:
    """Return the place of this process among those that a launcher such as torchrun started; alone if there is none.

    Raises:
        ConfigError: A launcher's variable is no number, or there is no such rank.
    """
    launcher = launcher_of(environment)
    if launcher is None:
        return World()
    names = launcher.rank, launcher.local_rank, launcher.size
    try:
        rank, local_rank, size = (int(environment.get(name, "0")) for name in names)
        here = int(environment.get("LOCAL_WORLD_SIZE", size))
    except ValueError as error:
        shown = ", ".join((*names, "LOCAL_WORLD_SIZE"))
        raise ConfigError(f"{shown} in the environment must be whole numbers: {error}.") from error
    if not 0 <= rank < size:
        message = f"{launcher.rank}={rank} in the environment must be from 0 to one less than {launcher.size}={size}."
        raise ConfigError(message)
    return World(rank=rank, local_rank=local_rank, size=size, nodes=max(1, size // max(1, here)))


def is_worker(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether a launcher started this process as one of several."""
    return launcher_of(environment) is not None


def command_of_this_process() -> list[str]:
    """Return the command that does what this process was asked to do."""
    return [sys.executable, "-m", "oumi_kernel", *sys.argv[1:]]


def report_to_launcher(text: str, exit_code: int) -> bool:
    """Leave why this process ends to whoever started it; return whether there is somebody who asked for that."""
    folder = os.environ.get(LAUNCH)
    if not folder or _is_orphan():
        return False
    failure = Failure(rank=world_from().rank, text=text, exit_code=exit_code)
    if exit_code == StopRequested.exit_code:
        (Path(folder) / STOP).touch()
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    place = Path(folder) / f"failure_{int(attempt):06}.json"
    with suppress(FileExistsError), place.open("xb") as file:  # the others fail because of the first
        file.write(msgspec.json.encode(failure))
    return True


def begin_no_more() -> None:
    """Tell whoever started this process that the run was asked to stop: should it fail now, it is not begun anew."""
    if os.environ.get(LAUNCH) and not _is_orphan():
        (Path(os.environ[LAUNCH]) / STOP).touch()


def restarted_after() -> float | None:
    """Return when the run began, in seconds of the system's clock, if a launcher started this process anew; else None.

    What was saved since is the run's own. It is 0 where the launcher does not say.
    """
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return None
    folder = os.environ.get(LAUNCH)
    return (Path(folder) / BEGAN).stat().st_mtime if folder else 0.0


def first_failure(folder: Path) -> Failure | None:
    """Return the first failure of the last attempt; None if no process said why it ended."""
    found = sorted(folder.glob("failure_*.json"))
    return msgspec.json.decode(found[-1].read_bytes(), type=Failure) if found else None


def listen_to_launcher() -> bool:
    """Tell whoever started this process which one it is, so that a request to stop can be passed on.

    Where it is gone, this process is asked to stop.

    Returns:
        Whether there is anything to do: not where all stopped, and the launcher began anew nevertheless.

    Raises:
        StopRequested: The request came before this process could be told.
    """
    folder = os.environ.get(LAUNCH)
    if not folder:
        return True
    threading.Thread(target=_stop_when_orphaned, daemon=True).start()
    (Path(folder) / f"process_{world_from().local_rank}").write_text(str(os.getpid()))
    if not (Path(folder) / STOP).exists():
        return True
    if first_failure(Path(folder)):
        (Path(folder) / IDLE).touch()
        return False
    raise StopRequested("asked to stop before training began: nothing was trained, and nothing is lost.")


def _stop_when_orphaned() -> None:
    """Ask this process to stop when the one that started it is gone: nobody else would end it, or start it anew."""
    while not _is_orphan():
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)


def _is_orphan() -> bool:
    return os.environ.get(LAUNCHED_BY) != str(os.getppid())
