"""Being asked to stop: at once while nothing is trained yet, later when the trainer has left a complete checkpoint."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """SIGTERM before training began. No library may take it for an error of its own."""


class Stop:
    """Whether the process was asked to stop, by SIGTERM or SIGINT.

    Attributes:
        requested: Whether it was. A trainer looks at it after every step and every batch of an evaluation.
    """

    def __init__(self) -> None:
        self.requested = False
        self._waits = False
        self._process = os.getpid()

    def wait(self) -> None:
        """From now on only note requests: there is something to lose.

        Raises:
            Interrupted: A request came before.
        """
        self.settle()
        if self.requested:
            raise Interrupted

    def settle(self) -> None:
        """From now on only note requests: the run is ending anyway."""
        self._waits = True

    @contextmanager
    def listening(self) -> Generator[None]:
        """Take the signals while this lasts. A second SIGINT ends at once in any case."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Python delivers signals to the main thread only
            return
        before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a process that a library forked off: it has nothing to save
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if number == signal.SIGINT and (self.requested or not self._waits):
            raise KeyboardInterrupt
        self.requested = True
        if not self._waits:
            raise Interrupted
