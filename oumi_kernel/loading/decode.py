"""Raw data -> typed structs: one conversion when all is well, otherwise a walk that repairs or reports everything."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import msgspec

from oumi_kernel.errors import ConfigError, Problem
from oumi_kernel.loading.describe import did_you_mean, refusal, shown
from oumi_kernel.loading.document import Document
from oumi_kernel.loading.misplaced import section_of
from oumi_kernel.loading.yaml_reader import scalar
from oumi_kernel.schema import Params

PLACEHOLDER = "?"
LISTED = 12


def convert(data: Any, type_: Any, *, document: Document, path: str, distribution: str = "") -> Any:
    """Return raw data as `type_`, a `Params` struct.

    Raises:
        ConfigError: Holds every problem, with its place, and the distribution that owns the struct.
    """
    value, problems = decode(data, type_, document=document, path=path, distribution=distribution)
    if problems:
        raise ConfigError(problems)
    return value


def decode(
    data: Any, type_: Any, *, document: Document, path: str = "", distribution: str = ""
) -> tuple[Any, list[Problem]]:
    """Return (typed value, problems). Where there are problems, defaults stand in, so that rules can still run."""
    walk = _Walk(document, distribution)
    try:
        value = msgspec.convert(data, type_)
    except (msgspec.ValidationError, RecursionError):
        value = msgspec.convert(walk.struct(data, type_, path), type_)
    walk.problems.extend(walk.rules(value, path))
    return value, walk.problems


class _Walk:
    """Goes through raw data along the fields of a struct."""

    def __init__(self, document: Document, distribution: str) -> None:
        self.document, self.distribution = document, distribution
        self.problems: list[Problem] = []

    def struct(self, data: Any, struct: type[Any], path: str) -> dict[str, Any]:
        """Return the part of `data` that fits `struct`; report the rest."""
        if data is None:
            data = {}
        if not isinstance(data, dict):
            self.report("wrong-type", path, f"expected a mapping, got {shown(data)}.")
            data = {}
        fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
        good: dict[str, Any] = {}
        for key, value in data.items():
            inner = f"{path}.{key}" if path else str(key)
            if key not in fields:
                self.unknown(key, tuple(fields), path, inner)
            else:
                fits, fitted = self.value(value, fields[key].type, inner)
                if fits:
                    good[key] = fitted
        for name, field in fields.items():
            if field.required and name not in good:
                if name not in data:
                    self.missing(name, path)
                good[name] = self.placeholder(field.type, f"{path}.{name}" if path else name)
        return good

    def value(self, value: Any, type_: Any, path: str) -> tuple[bool, Any]:
        """Return (whether it fits, the value, repaired where that is allowed)."""
        struct = _struct_in(type_)
        if struct and (isinstance(value, dict) or (value is None and not _takes_none(type_))):
            return True, self.struct(value, struct, path)
        item = _struct_item(type_)
        if item and isinstance(value, list):
            return True, [self.struct(entry, item, f"{path}[{index}]") for index, entry in enumerate(value)]
        for candidate in self.candidates(value, path):
            try:
                msgspec.convert(candidate, type_)
            except (msgspec.ValidationError, RecursionError):
                continue
            return True, candidate
        code, message, hint = refusal(type_, value)
        self.report(code, path, message, hint)
        return False, None

    def candidates(self, value: Any, path: str) -> Iterator[Any]:
        """Yield the value, then what the specification allows it to stand for."""
        yield value
        if isinstance(value, float) and value.is_integer():
            yield int(value)
        if isinstance(value, str) and scalar(value) != value:
            yield scalar(value)
            if isinstance(number := scalar(value), float) and number.is_integer():
                yield int(number)
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield self.document.text_at(path) or str(value)

    def unknown(self, key: str, known: tuple[str, ...], path: str, inner: str) -> None:
        """Report a key that the struct does not have, with the nearest, or the section that it belongs to."""
        section = section_of(key, known_here=path) if not self.distribution else ""
        near = did_you_mean(key, known)
        if section:
            hint = f"this key belongs under `{section}`"
        elif near:
            hint = near.strip()
        else:
            hint = f"keys here: {', '.join(known)}" if 0 < len(known) <= LISTED else ""
        self.report("unknown-key", inner, f"unknown key '{key}'.", hint, at_key=True)

    def missing(self, name: str, path: str) -> None:
        """Report a required key that is not there."""
        key = f"{path}.{name}" if path else name
        self.report("missing-key", key, f"'{name}' is required here.", at_key=True)

    def placeholder(self, type_: Any, path: str) -> Any:
        """Return something for a required key, so that the rest can be checked."""
        struct = _struct_in(type_)
        if struct is None:
            return PLACEHOLDER
        before = len(self.problems)
        value = self.struct({}, struct, path)
        if before and any(problem.path == path for problem in self.problems[:before]):
            del self.problems[before:]  # the section is missing: its required keys need no lines of their own
        return value

    def rules(self, value: Any, path: str) -> Iterator[Problem]:
        """Yield what the structs' own rules find."""
        if isinstance(value, Params):
            for inner, message in value.check():
                key = f"{path}.{inner}" if path else inner
                yield Problem(
                    code="rule",
                    path=key,
                    message=message,
                    place=self.document.place(key),
                    distribution=self.distribution,
                )
            for name in value.__struct_fields__:
                yield from self.rules(getattr(value, name), f"{path}.{name}" if path else name)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                yield from self.rules(item, f"{path}[{index}]")

    def report(self, code: str, path: str, message: str, hint: str = "", *, at_key: bool = False) -> None:
        """Note a problem at a key or its value."""
        place = self.document.key_place(path) if at_key else self.document.place(path)
        owner = self.distribution
        self.problems.append(Problem(code=code, path=path, message=message, hint=hint, place=place, distribution=owner))


def _struct_in(type_: Any) -> type[Any] | None:
    """Return the struct that a type is, or holds beside None."""
    options = get_args(type_) if get_origin(type_) in (types.UnionType, typing.Union) else (type_,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, msgspec.Struct)), None)


def _takes_none(type_: Any) -> bool:
    return type(None) in get_args(type_)


def _struct_item(type_: Any) -> type[Any] | None:
    return _struct_in(get_args(type_)[0]) if get_origin(type_) is list else None
