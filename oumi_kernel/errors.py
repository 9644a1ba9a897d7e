"""What can go wrong in a way that a user can act on, and the exit code of each kind.

Everything below is printed without a traceback. Any other exception that reaches the command line is a bug of ours
and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec


class Place(msgspec.Struct, frozen=True):
    """Where a value was written.

    Attributes:
        source: The file as the user named it, or `command line`.
        line: Line number, from 1; 0 where there is no line (a flag).
        column: Column number, from 1; 0 where there is none.
        text: The line itself, or the flag as it was typed.
    """

    source: str
    line: int = 0
    column: int = 0
    text: str = ""

    def __str__(self) -> str:
        """Return `file:line:column`, or the source alone for a flag."""
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong with a configuration.

    Attributes:
        code: A stable word for machines, such as `unknown-key` or `wrong-type`.
        path: The key, such as `data.train.datasets[0].split`; empty for the file as a whole.
        message: What is wrong: the value, and what was expected.
        hint: The way out, such as `did you mean 'learning_rate'?`; may be empty.
        place: Where the value was written; None for what nobody wrote (a missing section).
        severity: `error` stops the run, `warning` does not.
        distribution: Name and version of the distribution whose parameter is meant; empty for the kernel's own.
    """

    code: str
    path: str
    message: str
    hint: str = ""
    place: Place | None = None
    severity: Literal["error", "warning"] = "error"
    distribution: str = ""

    def __str__(self) -> str:
        """Return the problem on one line."""
        where = f"{self.place}: " if self.place else ""
        owner = f" (from {self.distribution})" if self.distribution else ""
        hint = f" {self.hint}" if self.hint else ""
        return f"{where}{self.path + ': ' if self.path else ''}{self.message}{owner}{hint}"


class OumiError(Exception):
    """The base of every error that the user can act on. `details` go into `failure.json`, for machines."""

    exit_code = 1

    def __init__(self, message: str = "", *, details: Mapping[str, Any] | None = None) -> None:
        """Take what people read, and what machines do."""
        super().__init__(message)
        self.details: Mapping[str, Any] = details or {}


class ConfigError(OumiError):
    """The configuration is wrong. Carries every problem that was found, not only the first."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem] | Problem | str) -> None:
        """Take one problem, several, or a plain message."""
        if isinstance(problems, str):
            problems = Problem(code="config", path="", message=problems)
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class NumericsError(OumiError):
    """A loss or gradient is not finite."""

    exit_code = 3


class DataError(OumiError):
    """The data cannot be read, or cannot be trained on. `path` is the key that names it, where that is known."""

    exit_code = 4
    path = ""


class OutOfMemoryError(OumiError):
    """The device or the host ran out of memory."""

    exit_code = 5


class CheckpointError(OumiError):
    """A checkpoint or the final model cannot be written or read, or the disk is full."""

    exit_code = 6


class PluginError(OumiError):
    """A plugin is missing, broken, clashing, too new, or failed while it was called."""

    exit_code = 7


class ProcessError(OumiError):
    """Another process of the run did not come, ended, or did not answer in time."""

    exit_code = 8


class StopRequested(OumiError):
    """The run was asked to stop, and lost nothing: a complete checkpoint was written, or nothing was trained yet."""

    exit_code = 143
