"""A folder of arrays that were computed once, each in one file, under a key of everything that they follow from.

An entry is a safetensors file that is written beside and renamed, so that it is there whole or not at all, whoever is
killed and however many write the same one at once. It carries a checksum: a damaged entry is as good as none. Arrays
are mapped into memory: what is not looked at is not read.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from oumi_kernel import CheckpointError

_log = logging.getLogger("oumi_plugins.trainers.cache")
VARIABLE = "OUMI_CACHE_DIR"
SUFFIX = ".safetensors"
UNUSED_SECONDS = 30 * 24 * 3600
UNFINISHED_SECONDS = 24 * 3600

Array = NDArray[Any]


def user_folder() -> Path:
    """Return where this user's prepared data goes: `$OUMI_CACHE_DIR`, else the user's folder of caches."""
    own, caches = os.environ.get(VARIABLE), os.environ.get("XDG_CACHE_HOME")
    return (Path(own) if own else Path(caches or "~/.cache") / "oumi-kernel").expanduser().absolute() / "prepared"


class Entry:
    """What is stored under one key: arrays by name, read-only, and facts, which are what JSON can hold."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, "pt") as file:  # torch's are the ones that are mapped, not read
            self._metadata: dict[str, str] = file.metadata()
            self.arrays: dict[str, Array] = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118
        self.facts: dict[str, Any] = msgspec.json.decode(self._metadata["facts"])
        for array in self.arrays.values():
            array.flags.writeable = False

    @property
    def checksum(self) -> str:
        """The checksum that was written with it."""
        return self._metadata["checksum"]

    @property
    def is_whole(self) -> bool:
        """Whether it is what was written."""
        return self.checksum == _checksum(self.arrays, self._metadata["facts"])


class Cache:
    """Entries by key, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._locks = folder.with_name(f"{folder.name}-locks")

    def read(self, key: str) -> Entry | None:
        """Return the entry of a key, which counts as a use of it; None if there is none, or a damaged one."""
        path = self._path(key)
        try:
            entry = Entry(path)
            if entry.is_whole:
                self._note_use(path)
                return entry
            problem = "its checksum is another one"
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            problem = str(error)
        _log.warning("the cached data in %s is damaged (%s); it is made again.", path, problem)
        return None

    @contextmanager
    def claimed(self, key: str) -> Generator[None]:
        """Let one process at a time make the entry of a key.

        Raises:
            CheckpointError: The folder cannot be written.
        """
        try:
            self._locks.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self._locks / key)
            lock.acquire()
        except OSError as error:
            raise CheckpointError(self._cannot_write(error, 0)) from error
        try:
            yield
        finally:
            lock.release()

    def open(self, key: str) -> Entry:
        """Return an entry that was read or written before, without looking at all of it.

        Raises:
            CheckpointError: It is gone.
        """
        try:
            return Entry(self._path(key))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"the prepared data of this run was removed while it was in use: {self._path(key)}: {error}. "
                "Start the run again; it is made anew."
            ) from error

    def write(self, key: str, arrays: Mapping[str, Array], facts: Mapping[str, Any]) -> Entry:
        """Store an entry, in the place of one that may be there.

        Raises:
            CheckpointError: The folder cannot be written, or the disk is full.
        """
        text = msgspec.json.encode(facts).decode()
        metadata = {"facts": text, "checksum": _checksum(arrays, text)}
        data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata)
        path = self._path(key)
        beside = self.folder / f".tmp-{uuid.uuid4().hex}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                beside.write_bytes(data)
                beside.replace(path)
            finally:
                beside.unlink(missing_ok=True)
            return Entry(path)
        except OSError as error:
            raise CheckpointError(self._cannot_write(error, len(data))) from error

    def sweep(self) -> None:
        """Remove what nobody used for 30 days, and what writers that were killed left behind."""
        now = time.time()
        try:
            for path in (*self.folder.iterdir(), *self._locks.glob("*")):
                limit = UNFINISHED_SECONDS if path.name.startswith(".tmp-") else UNUSED_SECONDS
                if path.name.startswith(".tmp-") or path.suffix == SUFFIX or path.parent == self._locks:
                    self._remove_if_older(path, now - limit)
        except OSError as error:
            _log.warning("old entries of the cache in %s stay: %s", self.folder, error)

    def _remove_if_older(self, path: Path, moment: float) -> None:
        try:
            if path.stat().st_mtime < moment:
                path.unlink()
        except FileNotFoundError:
            return  # somebody else swept it

    def _note_use(self, path: Path) -> None:
        try:
            os.utime(path)
        except OSError:
            return  # somebody else's, who keeps it as long as he uses it, or on a disk that is only read

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _cannot_write(self, error: OSError, needed: int) -> str:
        there = next(folder for folder in (self.folder, *self.folder.parents) if folder.is_dir())
        return (
            f"prepared data cannot be written into {self.folder}: {error.strerror or error}; {needed:,} bytes are "
            f"needed, {shutil.disk_usage(there).free:,} are free. {VARIABLE} names another folder."
        )


def _checksum(arrays: Mapping[str, Array], facts: str) -> str:
    checksum = zlib.crc32(facts.encode())
    for name in sorted(arrays):
        described = f"{name} {arrays[name].dtype.str} {arrays[name].shape}"
        checksum = zlib.crc32(described.encode(), checksum)
        checksum = zlib.crc32(np.ascontiguousarray(arrays[name]).data.cast("B"), checksum)
    return f"{checksum:08x}"
