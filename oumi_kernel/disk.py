"""The disk of a run: who writes there, how much fits, and that what was written stays."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Generator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from oumi_kernel.errors import CheckpointError

_log = logging.getLogger(__name__)
_WAY_OUT = "Free some space, or choose another training.output_dir."


def require_space(target: Path, needed: int) -> None:
    """Refuse to begin with what will not fit.

    Args:
        target: The folder that is to be written.
        needed: Bytes that it takes at least.

    Raises:
        CheckpointError: Fewer bytes are free.
    """
    free = free_bytes(target.parent)
    if free < needed:
        raise CheckpointError(f"{target} needs {needed:,} bytes, and {free:,} bytes are free. {_WAY_OUT}")


def cannot_write(target: Path, needed: int, error: Exception) -> CheckpointError:
    """Return the error of a folder that could not be written, once its remains are gone."""
    free = free_bytes(target.parent)
    reason = str(error).rstrip(".")
    return CheckpointError(
        f"cannot write {target}: {reason}. It needs {needed:,} bytes or more; {free:,} bytes are free. {_WAY_OUT}"
    )


def free_bytes(folder: Path) -> int:
    """Return the bytes that are free where a folder is; 0 if there is no such folder."""
    return shutil.disk_usage(folder).free if folder.exists() else 0


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def reserved(folder: Path, rank: int = 0) -> Generator[None]:
    """Let one run at a time write into a folder. The lock ends with the process, however it ends.

    Args:
        folder: The output folder of the run.
        rank: Which of its processes this is: each has a lock of its own.

    Raises:
        CheckpointError: Another process has it, or the lock file cannot be written.
    """
    if sys.platform == "win32":
        yield
        return
    path = folder / (f".lock-{rank}" if rank else ".lock")
    try:
        file = path.open("ab+", buffering=0)
    except OSError as error:
        raise cannot_write(path, 0, error) from error
    with file:
        _lock(file, folder)
        try:
            file.truncate(0)
            file.write(str(os.getpid()).encode())
        except OSError as error:
            raise cannot_write(path, len(str(os.getpid())), error) from error
        yield


def check_unreserved(folder: Path) -> None:
    """Say what `reserved` would say if another process has the folder; make nothing.

    Raises:
        CheckpointError: It has.
    """
    path = folder / ".lock"
    if sys.platform != "win32" and path.exists():
        with path.open("rb+", buffering=0) as file:
            _lock(file, folder)


def _lock(file: FileIO, folder: Path) -> None:
    import fcntl

    try:
        # A lock of the process, not of the open file: a data-loader worker that outlives the run holds nothing.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = Path(file.name).read_text().strip() or "unknown"
        raise CheckpointError(
            f"training.output_dir: another run, process {owner}, is writing into {folder}. "
            "Wait for it, or choose another folder."
        ) from error
    except OSError as error:
        _log.warning("%s cannot be locked (%s): do not start a second run there", folder, error)
