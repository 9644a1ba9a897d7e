"""Where else in the configuration a key of some name exists."""

from __future__ import annotations

import functools
from typing import Any, get_args, get_origin

import msgspec

from oumi_kernel.config import TrainingConfig
from oumi_kernel.loading.aliases import ALIASES


def section_of(key: str, *, known_here: str) -> str:
    """Return the section that has `key`, other than `known_here`; empty if there is none."""
    homes = [home for home in _homes().get(key, ()) if home != known_here]
    return homes[0] if homes else ""


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
