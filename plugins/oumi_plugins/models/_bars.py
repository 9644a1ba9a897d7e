"""The library's progress bars: for a person who waits at a terminal, not for logs."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager

from transformers.utils import logging as library_logging


@contextmanager
def no_bars() -> Generator[None]:
    """Keep the library's bars away."""
    were_on = library_logging.is_progress_bar_enabled()
    library_logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_on:
            library_logging.enable_progress_bar()


@contextmanager
def bars_on_a_terminal() -> Generator[None]:
    """Keep the library's bars away where nobody sees them move."""
    if sys.stderr.isatty():
        yield
        return
    with no_bars():
        yield
