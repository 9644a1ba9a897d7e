"""What a component found wrong, said with the place in the configuration where it was written."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import msgspec

from oumi_kernel.errors import ConfigError, DataError, Problem
from oumi_kernel.loading import LoadedConfig
from oumi_kernel.plugins import Kernel


@contextmanager
def errors_placed(kernel: Kernel, loaded: LoadedConfig) -> Generator[None]:
    """Name the plugin that failed, and the place in the configuration that a component found wrong."""
    try:
        with kernel.manager.attributed():
            yield
    except ConfigError as error:
        raise ConfigError([_placed(problem, loaded) for problem in error.problems]) from error
    except DataError as error:
        if not error.path:
            raise
        message = f"{loaded.document.place(error.path)}: {error.path}: {error}"
        raise DataError(message, details=error.details) from error


def _placed(problem: Problem, loaded: LoadedConfig) -> Problem:
    """Return a problem that a component found with the place where its key was written."""
    place = problem.place or (loaded.document.place(problem.path) if problem.path else None)
    return msgspec.structs.replace(problem, place=place)
