"""`oumi __complete`: candidates for the word at the cursor, without cyclopts and without torch."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from oumi_kernel.cli.commands import COMMANDS, Command


def complete(words: Sequence[str]) -> int:
    """Print a candidate a line.

    Args:
        words: The index of the word at the cursor, then the whole line as the shell split it, `oumi` first.

    Returns:
        0, or 2 when it was not called by a completion script.
    """
    if not words or not words[0].isdecimal():
        return 2
    cursor, line = int(words[0]), list(words[1:])
    current = line[cursor] if cursor < len(line) else ""
    sys.stdout.write("".join(f"{candidate}\n" for candidate in candidates(line[1:cursor], current)))
    return 0


def candidates(before: Sequence[str], current: str) -> list[str]:
    """Return what may stand at the cursor.

    Args:
        before: The words between `oumi` and the cursor. Bash makes `=` a word of its own.
        current: What is typed of the word at the cursor.
    """
    if current == "=":
        before, current = [*before, "="], ""
    command = _command(before)
    if command is None:
        return _matching(_next_words(before), current)
    if current.startswith("-") and "=" in current:  # shells that keep `--key=value` as one word
        option, _, typed = current.partition("=")
        return [f"{option}={value}" for value in _matching(_values(command, option), typed)]
    option = _open_option(before)
    if option:
        return _matching(_values(command, option), current)
    if current.startswith("-"):
        prefix = "--no-" if current.startswith("--no-") else "--"
        keys = _keys_under(current[len(prefix) :], prefix) if command.overrides and current.startswith("--") else []
        return _matching(("--help", *command.options), current) + keys
    return _argument(command, current)


def _command(before: Sequence[str]) -> Command | None:
    return next((command for command in COMMANDS if tuple(before[: len(command.words)]) == command.words), None)


def _next_words(before: Sequence[str]) -> Iterable[str]:
    position = len(before)
    words = {c.words[position] for c in COMMANDS if c.words[:position] == tuple(before) and len(c.words) > position}
    return sorted(words) + ["--help"] * bool(words) + ["--version"] * (not before)


def _open_option(before: Sequence[str]) -> str:
    """Return the option that waits for its value at the cursor, or nothing."""
    last = before[-2] if before[-1:] == ["="] and len(before) > 1 else before[-1]
    return (
        last if last.startswith("-") and "=" not in last and not last.startswith("--no-") and last != "--help" else ""
    )


def _values(command: Command, option: str) -> Iterable[str]:
    if option == "--family":
        from oumi_kernel.plugins.families import FAMILIES

        return FAMILIES
    if option in command.options or not command.overrides:
        return command.options.get(option, ())
    from oumi_kernel.cli.keys import NAMING_KEYS, all_keys, pattern_of

    pattern = pattern_of(option.removeprefix("--"))
    family = next((key.family for key in NAMING_KEYS if key.path == pattern), "")
    if family:
        from oumi_kernel.plugins import scan
        from oumi_kernel.plugins.families import DEFAULT

        return [name for name in scan().names(family) if name != DEFAULT]
    key = all_keys().get(pattern)
    return _words_of(key.type) if key else ()


def _words_of(type_: Any) -> Iterable[str]:
    from oumi_kernel.loading.describe import choices, expectation

    return choices(type_) or (("true", "false") if "true or false" in expectation(type_) else ())


def _argument(command: Command, current: str) -> list[str]:
    if command.argument == "key":
        return _keys_under(current, "")
    if command.argument == "component":
        from oumi_kernel.plugins import scan

        return _matching(sorted({entry.name for entry in scan().entries}), current)
    return _matching(("bash", "zsh", "fish"), current) if command.argument == "shell" else []


def _keys_under(typed: str, prefix: str) -> list[str]:
    """Return the keys that go on from what is typed, one level at a time; a section ends with its dot."""
    from oumi_kernel.cli.keys import all_keys, pattern_of

    parent, dot, _ = typed.rpartition(".")
    pattern = pattern_of(parent)
    found = [
        f"{prefix}{parent}{dot}{key.name}" + ("[0]." if key.repeated else "." if key.struct else "")
        for key in all_keys().values()
        if key.path.rpartition(".")[0] == pattern
    ]
    return _matching(found, prefix + typed)


def _matching(words: Iterable[str], typed: str) -> list[str]:
    return [word for word in words if word.startswith(typed)]
