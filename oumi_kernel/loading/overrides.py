"""Flags such as `--training.learning_rate 5e-5`: taken out of the arguments, and put into the raw tree."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import msgspec

from oumi_kernel.errors import ConfigError, Place, Problem
from oumi_kernel.loading.document import COMMAND_LINE, Document, child
from oumi_kernel.loading.yaml_reader import MAX_DEPTH, Node, read_yaml, scalar

_FLAG = re.compile(r"--(?P<no>no-)?(?P<path>[A-Za-z_][\w-]*(?:(?:\.[\w-]+)|(?:\[[0-9]+\]))+)(?P<value>=.*)?\Z", re.S)
_MALFORMED = re.compile(r"--(?:no-)?[A-Za-z_][\w-]*[.\[]")
_OPTION = re.compile(r"--|-[A-Za-z]")
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
    is an option itself (`-1e-3` is none). Everything after a lone `--` is left alone.

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
            _check_whole(match["value"][1:], token, arguments)
            overrides.append(Override(path, match["value"][1:], token, bool(match["no"])))
        elif not match["no"] and arguments and not _OPTION.match(arguments[0]):
            text = arguments.pop(0)
            _check_whole(text, f"{token} {text}", arguments)
            overrides.append(Override(path, text, f"{token} {text}"))
        else:
            overrides.append(Override(path, None, token, bool(match["no"])))
    return overrides, rest


def _check_whole(text: str, flag: str, following: Sequence[str]) -> None:
    """Refuse a mapping or list that goes on in the next word.

    Raises:
        ConfigError: It does, as nobody put it in quotes.
    """
    opening, closing = text[:1], {"{": "}", "[": "]"}.get(text[:1])
    if closing is None or text.count(opening) <= text.count(closing):
        return
    for count, word in enumerate(following, 1):
        if _FLAG.match(word):
            return
        whole = " ".join((text, *following[:count]))
        if whole.count(opening) <= whole.count(closing):
            message = "its value goes on in the next word."
            hint = f"Put a value with spaces in quotes: {flag.removesuffix(text)}'{whole}'."
            raise ConfigError(
                Problem(code="override", path="", message=message, hint=hint, place=Place(COMMAND_LINE, text=flag))
            )


def apply_overrides(document: Document, overrides: Sequence[Override]) -> Iterator[Problem]:
    """Put the values of flags into the tree; yield what cannot be put.

    A mapping is merged, but `{}` empties; everything else replaces.
    """
    for override in overrides:
        try:
            if override.path.count(".") + override.path.count("[") >= MAX_DEPTH:
                raise ConfigError(_problem(override, f"nested more than {MAX_DEPTH} levels deep."))
            _put(document, override.path, read_value(override), override)
        except ConfigError as error:
            yield from error.problems
        except KeyError as error:
            message = f"there is no {error.args[0]} to put this into."
            yield _problem(override, message, _lengths(document, override.path))


def read_value(override: Override) -> Node:
    """Return the value of a flag: a mapping, list or quoted text as in YAML, otherwise one plain scalar.

    Raises:
        ConfigError: A mapping or list is not YAML, or `--no-` came with a value.
    """
    text = override.text
    if text is None:
        return Node(value=not override.negated, line=0, column=0)
    if override.negated:
        raise ConfigError(_problem(override, "a flag that begins with --no- takes no value."))
    if text != text.encode(errors="ignore").decode():
        shown = msgspec.structs.replace(override, flag=override.flag.encode(errors="replace").decode())
        raise ConfigError(_problem(shown, "is not UTF-8 text."))
    plain = text.strip()
    if not plain:
        raise ConfigError(_problem(override, "has no value.", "Write null for none, or '\"\"' for an empty text."))
    if plain[:1] in ("{", "[", '"', "'"):
        try:
            return read_yaml(text, COMMAND_LINE)
        except ConfigError as error:
            if plain[0] in "{[":
                hint = "Put text that begins with a bracket in quotes of its own: '\"[a-z]+\"'."
                raise ConfigError([_problem(override, problem.message, hint) for problem in error.problems]) from None
    return Node(value=scalar(plain), line=0, column=0, text=text)


def _put(document: Document, path: str, node: Node, override: Override) -> None:
    _, current = document.get(path)
    if isinstance(node.value, dict) and node.value and isinstance(current, dict):
        for key, item in node.items.items():
            _put(document, child(path, key), item, override)
    else:
        typed = override.text if path == override.path else None
        document.put_flag(path, node, flag=override.flag, typed=typed)


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
