"""What makes a checkpoint complete once its files are written: sealed, put in its place, older ones deleted.

Reading every byte again for the manifest and waiting for the disk takes as long as writing, and needs nothing of the
model: it can be done beside training. Until then the folder has another name, which nobody takes for a checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from safetensors import SafetensorError

from oumi_kernel.completeness import MANIFEST
from oumi_kernel.disk import cannot_write
from oumi_plugins.trainers._manifest import checkpoints_in, put, remove, seal, tidy
from oumi_plugins.trainers._retention import expendable

_log = logging.getLogger("oumi_plugins.trainers.checkpoint")


class Completion:
    """Completes the checkpoints of a folder one after another.

    Attributes:
        size: Bytes of the last complete one; 0 before there was one.
    """

    def __init__(self, folder: Path, limit: int | None, done: Callable[[int, Path], None], *, beside: bool) -> None:
        """Take the folder, how many checkpoints may stay, whom to tell, and whether training goes on meanwhile."""
        self.size = 0
        self._folder, self._limit, self._done = folder, limit, done
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if beside else None
        self._pending: tuple[int, Path, Future[None]] | None = None

    def begin(self, step: int, written: Path, best: int | None, needed: int) -> None:
        """Complete the checkpoint of a step; the one before is complete.

        Args:
            step: Optimizer steps done.
            written: A folder with all files.
            best: The step of the best checkpoint, which stays.
            needed: The bytes that it was said to need.

        Raises:
            CheckpointError: It cannot be; at a later call where training goes on meanwhile.
        """
        target = self._folder / f"checkpoint-{step}"
        work = partial(self._complete, step, written, target, best, needed)
        if self._thread is None:
            work()
            self._done(step, target)
        else:
            self._pending = step, target, self._thread.submit(work)

    def look(self, *, wait: bool = False) -> None:
        """Tell of a checkpoint that is complete since the last look; `wait` until there is none under way.

        Raises:
            CheckpointError: It could not be completed.
        """
        if self._pending is None or not (wait or self._pending[2].done()):
            return
        (step, target, future), self._pending = self._pending, None
        future.result()
        self._done(step, target)

    def _complete(self, step: int, written: Path, target: Path, best: int | None, needed: int) -> None:
        try:
            self.size = seal(written)
            put(written, target)
        except (OSError, SafetensorError) as error:
            tidy(self._folder)
            raise cannot_write(target, needed, error) from error
        complete = {at: folder for at, folder in checkpoints_in(self._folder) if (folder / MANIFEST).exists()}
        for old in expendable(list(complete), step, best, self._limit):
            try:
                remove(complete[old])
            except OSError as error:
                _log.warning("%s cannot be deleted: %s", complete[old], error)
