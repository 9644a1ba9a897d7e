"""The command line `oumi`: from words to a function, and from what went wrong to a message and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence

_BUG = "This is a bug in oumi-kernel or a plugin, not in what you wrote. Please report the lines above.\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: The words after `oumi`; None takes them from the command line.

    Returns:
        0 done, 2 wrong usage or configuration, 130 interrupted, 141 nobody reads on, 1 a bug of ours, else the code of
        the `OumiError`.
    """
    try:
        code = _answer(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stdout = None  # pyright: ignore[reportAttributeAccessIssue] - the interpreter would flush it once more
        return 141
    return code


def _answer(words: list[str]) -> int:
    """Answer without cyclopts where that is possible: completion and `--version` are asked for most often."""
    if words == ["--version"]:
        return _version()
    if words[:1] == ["__complete"]:
        from oumi_kernel.cli.complete import complete

        return complete(words[1:])
    return _guarded(words)


def _guarded(words: list[str]) -> int:
    from oumi_kernel.cli.application import UsageError, dispatch
    from oumi_kernel.errors import OumiError
    from oumi_kernel.launch import report_to_launcher

    try:
        return dispatch(words)
    except UsageError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except OumiError as error:
        text = _message(error)
        if not report_to_launcher(text, error.exit_code):
            sys.stderr.write(text)
        return error.exit_code
    except BrokenPipeError:
        raise
    except Exception:  # noqa: BLE001 - the last place that can say whose fault it is
        import traceback

        text = traceback.format_exc() + _BUG
        if not report_to_launcher(text, 1):
            sys.stderr.write(text)
        return 1


def _message(error: Exception) -> str:
    from oumi_kernel.errors import ConfigError

    if not isinstance(error, ConfigError):
        return f"error: {error}\n" + "".join(f"{note}\n" for note in getattr(error, "__notes__", ()))
    from oumi_kernel.loading import render_problems

    return render_problems(error.problems, "text").rstrip("\n") + "\n"


def _version() -> int:
    from oumi_kernel.cli.env import version_of

    sys.stdout.write(f"oumi-kernel {version_of('oumi-kernel') or '(a checkout that is not installed)'}\n")
    return 0
