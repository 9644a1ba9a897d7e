"""Being asked to stop: the request is noted, and the loop ends at the next step with a complete checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Whether the process was asked to stop."""

    requested = False


@contextmanager
def stop_signals(stop: Stop) -> Generator[None]:
    """Note SIGTERM and SIGINT in `stop` instead of ending at once; a second SIGINT ends at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread only
        return

    def note(number: int, frame: FrameType | None) -> None:
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.requested = True

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
