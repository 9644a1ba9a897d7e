"""The kit with which a plugin author tests a plugin: `check_component(component, "optimizers")` in a test."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import msgspec

from oumi_kernel.component import Component
from oumi_kernel.plugins.catalogue import Entry
from oumi_kernel.plugins.families import FAMILIES
from oumi_kernel.plugins.loading import check_target
from oumi_kernel.plugins.manager import Manager
from oumi_kernel.plugins.resolve import Selected


def check_component(target: type[Component] | Callable[..., Any], family: str, *, name: str = "") -> type[Component]:
    """Check a component as the kernel would, before anybody names it in a configuration.

    Checks that it is a component of `family` or a callable that can become one, that its parameters can be typed and
    its defaults satisfy their own ranges, that the kernel API is new enough, and that every hook exists and takes
    arguments that its specification has.

    Returns:
        The component class, made from the callable where a callable was given.

    Raises:
        PluginError: What a user of the plugin would see.
        ValueError: `family` is unknown, or a default breaks the range of its own field.
    """
    if family not in FAMILIES:
        raise ValueError(f"no family '{family}'; families: {', '.join(FAMILIES)}")
    label = name or getattr(target, "__name__", "component")
    module = inspect.getmodule(target)
    value = f"{module.__name__ if module else '?'}:{label}"
    entry = Entry(family=family, name=label, distribution="under test", version="", value=value)
    component = check_target(entry, target)
    _check_defaults(component)
    Manager().activate(Selected(entry=entry, component=component, path="", params=None))
    return component


def _check_defaults(component: type[Component]) -> None:
    for field in msgspec.structs.fields(component.params_type):
        if field.default is not msgspec.NODEFAULT:
            default = msgspec.to_builtins(field.default)
        elif field.default_factory is not msgspec.NODEFAULT:
            default = msgspec.to_builtins(field.default_factory())
        else:
            continue
        try:
            msgspec.convert(default, field.type)
        except msgspec.ValidationError as error:
            name = f"{component.params_type.__name__}.{field.name}"
            raise ValueError(f"{name}: its default is refused: {error}") from error
