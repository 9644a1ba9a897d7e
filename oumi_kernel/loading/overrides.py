"""Flags such as `--training.learning_rate 5e-5`: taken out of the arguments, and put into the raw tree."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from oumi_kernel.errors import ConfigError, Place, Problem
from oumi_kernel.loading.document import COMMAND_LINE, Document
from oumi_kernel.loading.yaml_reader import read_yaml

_FLAG = re.compile(r"--(?P<no>no-)?(?P<path>[A-Za-z_][\w-]*(?:(?:\.[\w-]+)|(?:\[[0-9]+\]))+)(?P<value>=.*)?\Z", re.S)
_MALFORMED = re.compile(r"--(?:no-)?[A-Za-z_][\w-]*[.\[]")
_INDEX = re.compile(r"\.([0-9]+)(?=[.\[]|\Z)")


class Override(msgspec.Struct, frozen=True):
    """One flag that changes the configuration.

    Attributes:
        path: The key, in the form `data.train.datasets[0].split`.
        text: The value as typed; None for a bare flag, which switches a key on (or off, with `no-`).
        flag: The flag as typed.
        negated: Whether it began with `--no-`.
    """

    path: str
    text: str | None
    flag: str
    negated: bool = False


def split_overrides(argv: Sequence[str]) -> tuple[list[Override], list[str]]:
    """Separate overrides from the other arguments, wherever they stand.

    An option whose name holds `.` or `[` is an override. Its value follows `=`, or is the next argument unless that
    begins with `--`. Everything after a lone `--` is left alone.

    Raises:
        ConfigError: An option looks like an override, but its key cannot be read.
    """
    overrides: list[Override] = []
    rest: list[str] = []
    arguments = list(argv)
    while arguments:
        token = arguments.pop(0)
        if token == "--":  # noqa: S105 - the end of options, no password
            rest += arguments
            break
        match = _FLAG.match(token)
        if not match:
            if _MALFORMED.match(token):
                raise ConfigError(_malformed(token))
            rest.append(token)
            continue
        path = _INDEX.sub(r"[\1]", match["path"])
        if match["value"] is not None:
            overrides.append(Override(path, match["value"][1:], token, bool(match["no"])))
        elif not match["no"] and arguments and not arguments[0].startswith("--"):
            text = arguments.pop(0)
            overrides.append(Override(path, text, f"{token} {text}"))
        else:
            overrides.append(Override(path, None, token, bool(match["no"])))
    return overrides, rest


def apply_overrides(document: Document, overrides: Sequence[Override]) -> Iterator[Problem]:
    """Put the values of flags into the tree; mappings merge, everything else replaces. Yields what cannot be put."""
    for override in overrides:
        try:
            value = read_value(override)
            _put(document, override.path, value, override)
        except ConfigError as error:
            yield from error.problems
        except KeyError as error:
            message = f"there is no {error.args[0]} to put this into."
            yield _problem(override, message, _lengths(document, override.path))


def read_value(override: Override) -> Any:
    """Return the value of a flag, read by the rules of the file.

    Raises:
        ConfigError: It is not YAML, or `--no-` came with a value.
    """
    if override.text is None:
        return not override.negated
    if override.negated:
        raise ConfigError(_problem(override, "a flag that begins with --no- takes no value."))
    if override.text.strip() == "":
        return override.text
    try:
        return read_yaml(override.text, COMMAND_LINE).value
    except ConfigError as error:
        if override.text[0] in "{[":
            raise ConfigError([_problem(override, problem.message) for problem in error.problems]) from None
        return override.text  # text such as `a: b: c` or `*x` that only looks like YAML


def _put(document: Document, path: str, value: Any, override: Override) -> None:
    there, current = document.get(path)
    if isinstance(value, dict) and there and isinstance(current, dict) and value:
        for key, item in value.items():
            _put(document, f"{path}.{key}", item, override)
    else:
        document.put(path, value, flag=override.flag, text=override.text)


def _lengths(document: Document, path: str) -> str:
    parts = path
    while parts:
        parts = parts.rpartition("[")[0] or parts.rpartition(".")[0]
        found, value = document.get(parts) if parts else (False, None)
        if found and isinstance(value, list):
            return f"{parts} has {len(value)} items; the first is [0]."
    return ""


def _malformed(token: str) -> Problem:
    message = "this flag's key cannot be read; write it like --data.train.datasets[0].split."
    return Problem(code="syntax", path="", message=message, place=Place(COMMAND_LINE, text=token))


def _problem(override: Override, message: str, hint: str = "") -> Problem:
    place = Place(COMMAND_LINE, text=override.flag)
    return Problem(code="override", path=override.path, message=message, hint=hint, place=place)
