"""Where log records go during a run: rank 0's to stderr, every rank's to `logs/rank_N.log`."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress

from oumi_kernel.contracts import Run
from oumi_kernel.errors import CheckpointError

_log = logging.getLogger(__name__)
OURS = ("oumi_kernel", "oumi_plugins")
LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "peft", "py.warnings")


class _LogFile(logging.FileHandler):
    """A log file that says once that it cannot be written, as on a full disk, and then keeps still."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        logging.getLogger().removeHandler(self)
        _log.warning("the log file %s cannot be written: %s", self.baseFilename, error.strerror)

    def close(self) -> None:
        with suppress(OSError):  # what could not be written was said, and cannot be written now either
            super().close()


@contextmanager
def logging_to(run: Run, *, to_file: bool = True) -> Generator[None]:
    """Send log records of this process to its file, and those of rank 0 to stderr, while the run lasts.

    Args:
        run: The run.
        to_file: Whether there is a file; without one, nothing is written into the output folder.

    Raises:
        CheckpointError: The log file cannot be written.
    """
    training = run.config.training
    handlers: list[logging.Handler] = [_file(run)] if to_file else []
    if run.world.is_main:
        console = logging.StreamHandler(sys.stderr)
        console.setFormatter(logging.Formatter("%(message)s"))
        handlers.append(console)
    levels = dict.fromkeys(OURS, training.log_level.upper()) | dict.fromkeys(LIBRARIES, training.dep_log_level.upper())
    before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    for handler in handlers:
        logging.getLogger().addHandler(handler)
    shown_by = warnings.showwarning
    logging.captureWarnings(True)  # as records of py.warnings
    is_ours = warnings.showwarning is not shown_by
    try:
        yield
    finally:
        if is_ours:
            logging.captureWarnings(False)
        for handler in handlers:
            logging.getLogger().removeHandler(handler)
            handler.close()
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _file(run: Run) -> logging.Handler:
    folder = run.output_dir / "logs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _LogFile(folder / f"rank_{run.world.rank}.log", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f"training.output_dir: cannot write into {run.output_dir}: {error.strerror}. Choose another folder."
        ) from error
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return file
