"""Raw data -> typed structs: one conversion when all is well, otherwise a walk that repairs or reports everything."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

import msgspec

from oumi_kernel.errors import ConfigError, Problem
from oumi_kernel.loading.describe import did_you_mean, refusal, same_words, shown
from oumi_kernel.loading.document import Document, child
from oumi_kernel.loading.misplaced import belongs
from oumi_kernel.loading.yaml_reader import scalar
from oumi_kernel.schema import Params

PLACEHOLDER = "?"
LISTED = 12
MAX_PROBLEMS = 100
LONGEST_PATH = 200


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
    """Return (typed value, problems).

    Where there are problems, defaults stand in for bad values, so that rules can still run; the value is None where a
    required value is missing that nothing can stand in for.
    """
    walk = _Walk(document, distribution)
    try:
        value = msgspec.convert(data, type_)
    except (msgspec.ValidationError, RecursionError):
        fitted = walk.struct(data, type_, path)
        try:
            value = msgspec.convert(fitted, type_)
        except msgspec.ValidationError as error:
            if not walk.problems:  # a check that the struct's author wrote into the struct itself
                walk.report("rule", path, f"{error}.")
            return None, walk.finish()
    for problem in walk.rules(value, path):
        walk.add(problem)
    return value, walk.finish()


class _Walk:
    """Goes through raw data along the fields of a struct."""

    def __init__(self, document: Document, distribution: str) -> None:
        self.document, self.distribution = document, distribution
        self.problems: list[Problem] = []
        self.unreported = 0

    def struct(self, data: Any, struct: type[Any], path: str) -> dict[str, Any]:
        """Return the part of `data` that fits `struct`; report the rest."""
        if data is None:
            data = {}
        if not isinstance(data, dict):
            self.report("wrong-type", path, f"expected a mapping, got {shown(data)}.")
            data = {}
        fields = _fields(struct)
        good: dict[str, Any] = {}
        for key, value in data.items():
            inner = child(path, key)
            if key not in fields:
                self.unknown(key, tuple(fields), path, inner)
            else:
                fits, fitted = self.value(value, fields[key].type, inner)
                if fits:
                    good[key] = fitted
        for name, field in fields.items():
            if field.required and name not in good:
                if name not in data:
                    self.report("missing-key", child(path, name), f"'{name}' is required here.", at_key=True)
                good[name] = self.placeholder(field.type, child(path, name))
        return good

    def value(self, value: Any, type_: Any, path: str) -> tuple[bool, Any]:
        """Return (whether it fits, the value, repaired where that is allowed); report what does not fit."""
        options = tuple(_options(type_))
        struct = _struct_in(options)
        if struct and (isinstance(value, dict) or (value is None and type(None) not in options)):
            return True, self.struct(value, struct, path)
        items = _items(value, options)
        if items is not None:
            parts, item_type = items
            fitted = {part: self.value(item, item_type, child(path, part)) for part, item in parts}
            if not all(fits for fits, _ in fitted.values()):
                return False, None
            found = {part: item for part, (_, item) in fitted.items()}
            value = found if isinstance(value, dict) else list(found.values())
        return self.leaf(value, type_, path)

    def leaf(self, value: Any, type_: Any, path: str) -> tuple[bool, Any]:
        """Do what `value` does for what has no parts, or whose parts fit."""
        for candidate in (*self.candidates(value, path), *same_words(value, type_)):
            try:
                msgspec.convert(candidate, type_)
            except (msgspec.ValidationError, RecursionError):
                continue
            return True, candidate
        if self.room():
            code, message, hint = refusal(type_, value, self.document.environment.get(path))
            self.report(code, path, message, hint)
        return False, None

    def candidates(self, value: Any, path: str) -> Iterator[Any]:
        """Yield the value, then what the specification allows it to stand for."""
        yield value
        if isinstance(value, float) and value.is_integer():
            yield int(value)
        if isinstance(value, str) and isinstance(meant := scalar(value), bool | int | float):
            yield meant
            if isinstance(meant, float) and meant.is_integer():
                yield int(meant)
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield self.document.text_at(path) or str(value)
        if (typed := self.document.typed_at(path)) is not None:
            yield typed

    def unknown(self, key: str, known: tuple[str, ...], path: str, inner: str) -> None:
        """Report a key that the struct does not have, with the nearest, or the section that it belongs to."""
        if not self.room():
            return
        hint = belongs(key, known_here=path) if not self.distribution else ""
        hint = hint or did_you_mean(key, known).strip()
        if not hint and 0 < len(known) <= LISTED:
            hint = f"keys here: {', '.join(known)}"
        self.report("unknown-key", inner, f"unknown key {shown(key)}.", hint, at_key=True)

    def placeholder(self, type_: Any, path: str) -> Any:
        """Return something for a required key, so that the rest can be checked."""
        struct = _struct_in(tuple(_options(type_)))
        if struct is None:
            return PLACEHOLDER
        silent = _Walk(self.document, self.distribution)  # the section itself was reported; not its required keys too
        return silent.struct({}, struct, path)

    def rules(self, value: Any, path: str) -> Iterator[Problem]:
        """Yield what the structs' own rules find."""
        if isinstance(value, Params):
            for relative, message in value.check():
                key = f"{path}.{relative}" if path else relative
                place = self.document.place(key)
                yield Problem(code="rule", path=key, message=message, place=place, distribution=self.distribution)
            for name in value.__struct_fields__:
                if isinstance(inner := getattr(value, name), Params | dict | list):
                    yield from self.rules(inner, child(path, name))
        elif isinstance(value, dict | list):
            for part, item in value.items() if isinstance(value, dict) else enumerate(value):
                yield from self.rules(item, child(path, part))

    def report(self, code: str, path: str, message: str, hint: str = "", *, at_key: bool = False) -> None:
        """Note a problem at a key or its value."""
        if not self.room():
            return
        place = self.document.key_place(path) if at_key else self.document.place(path)
        owner = self.distribution
        self.add(Problem(code=code, path=path, message=message, hint=hint, place=place, distribution=owner))

    def room(self) -> bool:
        """Return whether another problem will be read by anybody; count it if not."""
        full = len(self.problems) >= MAX_PROBLEMS
        self.unreported += full
        return not full

    def add(self, problem: Problem) -> None:
        """Note a problem, its path cut to what can be read."""
        long = len(problem.path) > LONGEST_PATH
        path = f"{problem.path[:LONGEST_PATH]}..." if long else problem.path
        self.problems.append(msgspec.structs.replace(problem, path=path))

    def finish(self) -> list[Problem]:
        """Return the problems, the last of which says how many were left out."""
        if self.unreported:
            message = f"{self.unreported:,} more problems are not shown."
            self.problems.append(Problem(code="limit", path="", message=message, place=self.document.place("")))
        return self.problems


@functools.cache
def _fields(struct: type[Any]) -> dict[str, msgspec.structs.FieldInfo]:
    return {field.encode_name: field for field in msgspec.structs.fields(struct)}


def _options(type_: Any) -> Iterator[Any]:
    """Yield the types that a type allows: the members of a union, without their constraints."""
    if get_origin(type_) is Annotated:
        yield from _options(get_args(type_)[0])
    elif get_origin(type_) in (types.UnionType, typing.Union):
        for member in get_args(type_):
            yield from _options(member)
    else:
        yield type(None) if type_ is None else type_


def _struct_in(options: tuple[Any, ...]) -> type[Any] | None:
    return next((o for o in options if isinstance(o, type) and issubclass(o, msgspec.Struct)), None)


def _items(value: Any, options: tuple[Any, ...]) -> tuple[list[tuple[Any, Any]], Any] | None:
    """Return ((index or key, item) of a collection, the type of its items); None where only the whole has a type."""
    kind = type(value)
    option = next((option for option in options if get_origin(option) is kind and kind in (list, dict)), None)
    if option is None or get_args(option)[-1] is Any:
        return None
    return list(value.items() if isinstance(value, dict) else enumerate(value)), get_args(option)[-1]
