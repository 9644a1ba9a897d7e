"""`${env:NAME}`, `${env:NAME:default}` and `${ref:section.key}`; any other `${` stays as it is, with a warning."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from oumi_kernel.errors import Problem
from oumi_kernel.loading.document import Document, format_path
from oumi_kernel.loading.yaml_reader import scalar

_EXPRESSION = re.compile(r"\$\{(env|ref):([A-Za-z_][\w.\[\]]*)(?::([^{}]*))?\}")


class _Unresolved(Exception):
    """An expression that has no value; the message says why."""


def interpolate(document: Document, environment: Mapping[str, str] = os.environ) -> Iterator[Problem]:
    """Replace expressions in every string of the tree; yield errors for those without a value, and warnings.

    A string that is one expression takes the type of its value; inside longer text the value is written out.
    """
    for path, text in list(_strings(document.data, ())):
        if "${" not in text:
            continue
        key = format_path(path)
        place = document.place(key)
        try:
            value, used_environment = _value(document, text, environment, (key,))
        except _Unresolved as error:
            yield Problem(code="interpolation", path=key, message=str(error), place=place)
            continue
        if used_environment:
            document.environment[key] = text
        if isinstance(value, str) and "${" in _EXPRESSION.sub("", value):
            yield Problem(
                code="interpolation",
                path=key,
                message=f"{value!r} is taken literally.",
                hint="Only ${env:NAME} and ${ref:section.key} are replaced.",
                place=place,
                severity="warning",
            )
        document.put(key, value)


def _value(document: Document, text: str, environment: Mapping[str, str], seen: tuple[str, ...]) -> tuple[Any, bool]:
    used = [False]

    def resolve(match: re.Match[str]) -> Any:
        kind, name, default = match.groups()
        if kind == "env":
            used[0] = True
            return _from_environment(name, default, environment)
        value, nested = _reference(document, name, environment, seen)
        used[0] = used[0] or nested
        return value

    if whole := _EXPRESSION.fullmatch(text):
        return resolve(whole), used[0]
    return _EXPRESSION.sub(lambda match: str(resolve(match)), text), used[0]


def _from_environment(name: str, default: str | None, environment: Mapping[str, str]) -> Any:
    if name in environment:
        return scalar(environment[name])
    if default is None:
        raise _Unresolved(f"the environment variable {name} is not set, and no default is given.")
    return scalar(default)


def _reference(
    document: Document, name: str, environment: Mapping[str, str], seen: tuple[str, ...]
) -> tuple[Any, bool]:
    if name in seen:
        raise _Unresolved(f"refers to itself: {' -> '.join((*seen, name))}.")
    found, value = document.get(name)
    if not found:
        raise _Unresolved(f"refers to '{name}', which this configuration does not set.")
    if isinstance(value, dict | list):
        raise _Unresolved(f"refers to '{name}', which is not a single value.")
    if isinstance(value, str) and _EXPRESSION.search(value):
        return _value(document, value, environment, (*seen, name))
    return value, name in document.environment


def _strings(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(item, (*path, index))
