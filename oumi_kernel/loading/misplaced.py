"""Where else in the configuration a key of some name exists."""

from __future__ import annotations

import functools
from typing import Any, get_args, get_origin

import msgspec

from oumi_kernel.config import TrainingConfig
from oumi_kernel.loading.aliases import ALIASES

NAMED = 2


def belongs(key: str, *, known_here: str) -> str:
    """Return a hint that names the sections with such a key, other than `known_here`; empty if there are none."""
    homes = sorted((home for home in _homes().get(key, ()) if home != known_here), key=_depth)
    if not homes:
        return ""
    if homes[0] == "":
        return "this key belongs at the top, not in a section"
    return f"this key belongs under {' or '.join(f'`{home}`' for home in homes[:NAMED])}"


def _depth(path: str) -> int:
    return path.count(".") + path.count("[") + bool(path)


@functools.cache
def _homes() -> dict[str, list[str]]:
    homes: dict[str, list[str]] = {}
    _collect(TrainingConfig, "", homes)
    for alias in ALIASES:
        section, _, key = alias.old.rpartition(".")
        homes.setdefault(key, []).append(section)
    return homes


def _collect(struct: type[Any], path: str, homes: dict[str, list[str]]) -> None:
    nested: list[tuple[type[Any], str]] = []
    for field in msgspec.structs.fields(struct):
        homes.setdefault(field.name, []).append(path)
        inner = f"{path}.{field.name}" if path else field.name
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            nested.append((field.type, inner))
        elif get_origin(field.type) is list and isinstance(get_args(field.type)[0], type):
            item = get_args(field.type)[0]
            if issubclass(item, msgspec.Struct):
                nested.append((item, f"{inner}[]"))
    for item, inner in nested:
        _collect(item, inner, homes)
