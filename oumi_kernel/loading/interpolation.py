"""`${env:NAME}`, `${env:NAME:default}` and `${ref:section.key}`; any other `${` stays as it is, with a warning."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from oumi_kernel.errors import Problem
from oumi_kernel.loading.document import Document, child, format_path, parse_path
from oumi_kernel.loading.yaml_reader import scalar

MAX_LENGTH = 1 << 16
MAX_REFERENCES = 32

_EXPRESSION = re.compile(r"\$\{(?:env:([A-Za-z_]\w*)(?::([^{}]*))?|ref:([A-Za-z_][\w.\[\]-]*))\}")
_BARE = re.compile(r"\$\{([A-Za-z_][\w.\[\]-]*)\}")


class _Unresolved(Exception):
    """An expression that has no value; the message says why."""


class _Meaning(msgspec.Struct, frozen=True):
    """What an expression stands for: its value, how that is written in text, and whether the environment says so."""

    value: Any
    text: str
    from_environment: bool = False


def interpolate(document: Document, environment: Mapping[str, str] = os.environ) -> Iterator[Problem]:
    """Replace expressions in every string of the tree; yield errors for those without a value, and warnings.

    A string that is one expression takes the type of its value; inside longer text the value is written out. What an
    expression stands for is not searched for expressions.
    """
    raw = {path: text for path, text in _strings(document.data, "") if "${" in text}
    resolver = _Resolver(document, raw, environment)
    meanings: dict[str, _Meaning] = {}
    for path, text in raw.items():
        place = document.place(path)
        try:
            meanings[path] = resolver.meaning(path, ())
        except _Unresolved as error:
            yield Problem(code="interpolation", path=path, message=str(error), place=place)
            continue
        if "${" in _EXPRESSION.sub("", text):
            message = f"{text!r} is taken literally."
            hint = _hint(text, document)
            yield Problem(code="interpolation", path=path, message=message, hint=hint, place=place, severity="warning")
    for path, meaning in meanings.items():
        document.put(path, meaning.value, meaning.text)
        if meaning.from_environment:
            document.environment[path] = raw[path]


class _Resolver:
    """Finds what expressions stand for, each once."""

    def __init__(self, document: Document, raw: Mapping[str, str], environment: Mapping[str, str]) -> None:
        self.document, self.raw, self.environment = document, raw, environment
        self.known: dict[str, _Meaning] = {}

    def meaning(self, path: str, seen: tuple[str, ...]) -> _Meaning:
        """Return what the string at `path` stands for; `seen` is the chain of references that led to it."""
        if path in seen:
            raise _Unresolved(f"refers to itself: {' -> '.join((*seen, path))}.")
        if len(seen) > MAX_REFERENCES:
            raise _Unresolved(f"refers to a key that refers to another, more than {MAX_REFERENCES} times.")
        if path not in self.known:
            self.known[path] = self.expand(self.raw[path], (*seen, path))
        return self.known[path]

    def expand(self, text: str, seen: tuple[str, ...]) -> _Meaning:
        if whole := _EXPRESSION.fullmatch(text):
            return self.one(whole, seen)
        meanings = [self.one(match, seen) for match in _EXPRESSION.finditer(text)]
        length = len(text) + sum(len(meaning.text) for meaning in meanings)
        if length > MAX_LENGTH:
            raise _Unresolved(f"would be {length:,} characters long; the limit is {MAX_LENGTH:,}.")
        parts = iter(meanings)
        written = _EXPRESSION.sub(lambda _: next(parts).text, text)
        return _Meaning(written, written, any(meaning.from_environment for meaning in meanings))

    def one(self, match: re.Match[str], seen: tuple[str, ...]) -> _Meaning:
        variable, default, reference = match.groups()
        return self.reference(reference, seen) if reference else self.variable(variable, default)

    def variable(self, name: str, default: str | None) -> _Meaning:
        text = self.environment.get(name, default)
        if text is None:
            message = f"the environment variable {name} is not set, and no default is given."
            raise _Unresolved(f"{message} Set it, or write ${{env:{name}:default}}.")
        if not text.isascii() and text != text.encode(errors="ignore").decode():
            raise _Unresolved(f"the environment variable {name} is not UTF-8 text.")
        return _Meaning(scalar(text), text, True)

    def reference(self, name: str, seen: tuple[str, ...]) -> _Meaning:
        path = format_path(parse_path(name))
        if path in self.raw:
            return self.meaning(path, seen)
        found, value = self.document.get(path)
        if not found:
            raise _Unresolved(f"refers to '{name}', which this configuration does not set.")
        if isinstance(value, dict | list):
            raise _Unresolved(f"refers to '{name}', which is not a single value.")
        text = self.document.text_at(path)
        return _Meaning(value, str(value).lower() if text is None else text)


def _hint(text: str, document: Document) -> str:
    bare = _BARE.search(text)
    if bare and document.get(bare[1])[0]:
        return f"did you mean ${{ref:{bare[1]}}}?"
    return "Only ${env:NAME} and ${ref:section.key} are replaced."


def _strings(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict | list):
        for part, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _strings(item, child(path, part))
