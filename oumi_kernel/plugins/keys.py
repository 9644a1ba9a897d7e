"""Reading a typed configuration by key: a value, its default, and patterns over splits and lists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

_PART = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


def value_at(config: Any, path: str) -> Any:
    """Return the value at a key such as `data.train.datasets[0].split`."""
    value = config
    for name, index in _PART.findall(path):
        value = value[int(index)] if index else value[name] if isinstance(value, dict) else getattr(value, name)
    return value


def default_at(config: Any, path: str) -> Any:
    """Return the default of the field at a key; `msgspec.NODEFAULT` for a required one."""
    parent_path, _, name = path.rpartition(".")
    parent = value_at(config, parent_path) if parent_path else config
    field = next(field for field in msgspec.structs.fields(type(parent)) if field.name == name)
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


def expand(config: Any, pattern: str) -> Iterator[str]:
    """Yield the keys that a pattern names: `*` stands for every field of a struct, `[]` for every item of a list."""
    yield from _expand(config, "", pattern.replace("[]", ".[]").split("."))


def _expand(value: Any, path: str, parts: list[str]) -> Iterator[str]:
    if not parts:
        yield path.removeprefix(".")
    elif parts[0] == "*":
        for name in value.__struct_fields__:
            yield from _expand(getattr(value, name), f"{path}.{name}", parts[1:])
    elif parts[0] == "[]":
        for index, item in enumerate(value):
            yield from _expand(item, f"{path}[{index}]", parts[1:])
    else:
        yield from _expand(getattr(value, parts[0]), f"{path}.{parts[0]}", parts[1:])
