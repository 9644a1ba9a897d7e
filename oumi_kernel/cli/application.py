"""From words to a call: overrides are taken out first, cyclopts reads the rest, and the command runs."""

from __future__ import annotations

from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter

from oumi_kernel.cli.commands import COMMANDS, GROUPS, Command
from oumi_kernel.loading import Override, split_overrides

_ABOUT = "Fine-tune language models from one YAML file. Everything that trains is a plugin."
_START = (
    "Start here:\n  oumi run quickstart    train a tiny model in under two minutes\n"
    "  oumi COMMAND --help    what a command takes"
)
_KEYS = (
    "Any configuration key is an option too: --training.learning_rate 5e-5, --training.compile, "
    "--no-training.compile, --data.train.datasets[0].split=test. 'oumi config explain KEY' says what it means."
)


class UsageError(Exception):
    """The words make no command; printed without a traceback, exit code 2."""


def application() -> App:
    """Return the cyclopts application; the commands are registered by name and imported when they are called."""
    app = _app("oumi", _ABOUT, _START)
    groups = {name: _app(name, about) for name, about in GROUPS.items()}
    for group in groups.values():
        app.command(group)
    for position, command in enumerate(COMMANDS):
        *parents, name = command.words
        parent = groups[parents[0]] if parents else app
        parent.command(
            command.target,
            name=name,
            help=command.summary,
            usage=f"Usage: {command.usage}",
            help_epilogue=_epilogue(command),
            sort_key=position,
        )
    return app


def dispatch(words: Sequence[str]) -> int:
    """Run the command that `words` name and return its exit code.

    Raises:
        UsageError: There is no such command, or it does not take these arguments.
        OumiError: What the command raises.
    """
    overrides, rest = split_overrides(words)
    try:
        function, bound, unparsed = application().parse_args(rest, print_error=False, exit_on_error=False)
    except CycloptsError as error:
        called = " ".join(("oumi", *(error.command_chain or ())))
        hint = _unquoted(words, overrides, rest)
        raise UsageError(f"{error}\n{hint}Run '{called} --help' to see what it takes.") from error
    if "overrides" in unparsed:
        bound.arguments["overrides"] = tuple(overrides)
    elif overrides and function.__name__ != "help_print":
        raise UsageError(f"this command takes no configuration keys: remove {overrides[0].flag}.")
    return int(function(*bound.args, **bound.kwargs) or 0)


def _unquoted(words: Sequence[str], overrides: Sequence[Override], rest: Sequence[str]) -> str:
    """Return what to say where a word follows a key's value, as if it belonged to it."""
    flags = {override.flag for override in overrides}
    for flag, value, word in zip(words, words[1:], words[2:], strict=False):
        if f"{flag} {value}" in flags and word in rest and not word.startswith("-"):
            return f"If '{word}' belongs to the value of {flag}, put it in quotes: {flag} '{value} {word}'.\n"
    return ""


def _app(name: str, about: str, epilogue: str = "") -> App:
    return App(
        name=name,
        help=about,
        help_epilogue=epilogue,
        help_format="plaintext",
        version_flags=[],
        default_parameter=Parameter(negative=()),
    )


def _epilogue(command: Command) -> str:
    examples = "\n".join(f"  {line}" for line in command.examples)
    parts = (_KEYS if command.overrides else "", f"Examples:\n{examples}" if examples else "")
    return "\n\n".join(part for part in parts if part)
