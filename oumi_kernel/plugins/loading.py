"""From an entry point to a component class: import it, check it, and say who is at fault when that fails."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oumi_kernel.component import KERNEL_API, Component
from oumi_kernel.errors import PluginError
from oumi_kernel.plugins.callables import component_from_callable
from oumi_kernel.plugins.families import FAMILIES
from oumi_kernel.schema import Params

if TYPE_CHECKING:
    from oumi_kernel.plugins.catalogue import Entry


def load_component(entry: Entry) -> type[Component]:
    """Import the component of an entry point.

    Raises:
        PluginError: It cannot be imported, is not a component of its family, or needs a newer kernel.
    """
    return check_target(entry, _import(entry))


def check_target(entry: Entry, target: Any) -> type[Component]:
    """Return what an entry point names as a component of its family.

    Raises:
        PluginError: It is none, or needs a newer kernel.
    """
    family = FAMILIES[entry.family]
    if not (inspect.isclass(target) and issubclass(target, Component)):
        if not (family.takes_callables and callable(target)):
            expected = "a subclass of oumi_kernel.Component" + (" or a callable" if family.takes_callables else "")
            raise PluginError(f"{describe(entry)} is {_kind(target)}; a {family.noun} is {expected}.")
        return component_from_callable(target, entry.family, entry.name, describe(entry))
    _check_attributes(entry, target)
    _check_api(entry, target)
    if family.hook and not hasattr(target, family.hook):
        raise PluginError(f"{describe(entry)} has no method {family.hook}, which every {family.noun} needs.")
    return target


def load_section(entry: Entry) -> type[Params]:
    """Import the struct of a plugin's own section.

    Raises:
        PluginError: It cannot be imported, or is no subclass of `oumi_kernel.Params`.
    """
    target = _import(entry)
    if not (inspect.isclass(target) and issubclass(target, Params)):
        raise PluginError(f"{describe(entry)} is {_kind(target)}; a section is a subclass of oumi_kernel.Params.")
    return target


def describe(entry: Entry) -> str:
    """Return the entry as messages name it: family, name, distribution, version, what is imported."""
    noun = FAMILIES[entry.family].noun if entry.family in FAMILIES else "section"
    return f"{noun} '{entry.name}' ({entry.label}: {entry.value})"


def _import(entry: Entry) -> Any:
    module_name, _, attribute = entry.value.partition(":")
    try:
        target: Any = _import_file(module_name) if module_name.endswith(".py") else importlib.import_module(module_name)
        for part in filter(None, attribute.split(".")):
            target = getattr(target, part)
    except Exception as error:
        raise PluginError(
            f"{describe(entry)} cannot be imported: {type(error).__name__}: {error}. "
            f"Mend or uninstall {entry.distribution}, or choose another {FAMILIES[entry.family].noun}."
            if entry.family in FAMILIES
            else f"{describe(entry)} cannot be imported: {type(error).__name__}: {error}."
        ) from error
    return target


def _import_file(file: str) -> Any:
    name = f"oumi_local_{Path(file).stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None or not Path(file).is_file():
        raise FileNotFoundError(f"no file {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _check_attributes(entry: Entry, component: Any) -> None:
    """Refuse class attributes of the wrong kind, which would otherwise fail far from their author."""
    params = component.params_type
    if not (inspect.isclass(params) and issubclass(params, Params)):
        raise PluginError(f"{describe(entry)}: params_type must be a subclass of oumi_kernel.Params, not {params!r}.")
    for name in ("requires", "unserved", "without_effect"):
        value = getattr(component, name)
        if not isinstance(value, Mapping):
            raise PluginError(f"{describe(entry)}: {name} must map text to text, not {value!r}.")
    api = component.api
    if not (isinstance(api, tuple) and len(api) == 2 and all(isinstance(part, int) for part in api)):
        raise PluginError(f"{describe(entry)}: api must be two whole numbers, such as (1, 0), not {api!r}.")


def _check_api(entry: Entry, component: type[Component]) -> None:
    major, minor = component.api
    if major != KERNEL_API[0] or minor > KERNEL_API[1]:
        needed, there = ".".join(map(str, component.api)), ".".join(map(str, KERNEL_API))
        way_out = "upgrade oumi-kernel" if component.api > KERNEL_API else f"upgrade {entry.distribution}"
        raise PluginError(f"{describe(entry)} needs kernel API {needed}, this kernel has {there}: {way_out}.")


def _kind(target: object) -> str:
    return f"the class {target.__name__}" if inspect.isclass(target) else f"a {type(target).__name__}"
