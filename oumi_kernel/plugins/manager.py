"""Activation, addressed and broadcast calls, and saying whose code failed."""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import msgspec
import pluggy

from oumi_kernel.component import Component
from oumi_kernel.errors import OumiError, PluginError
from oumi_kernel.plugins.catalogue import Entry
from oumi_kernel.plugins.families import FAMILIES
from oumi_kernel.plugins.hookspecs import BuildHooks, Events
from oumi_kernel.plugins.loading import describe
from oumi_kernel.plugins.resolve import Selected

_log = logging.getLogger(__name__)


class Active(msgspec.Struct, frozen=True, eq=False):
    """A component that was activated: its instance, and the slot that selected it."""

    plugin: Component
    selected: Selected


class Manager:
    """Holds the active components of one run."""

    def __init__(self) -> None:
        """Know every hook; no component is active yet."""
        self._pm = pluggy.PluginManager("oumi")
        self._pm.add_hookspecs(BuildHooks)
        self._pm.add_hookspecs(Events)
        self._active: list[Active] = []

    def activate(self, selected: Selected) -> Active:
        """Create a component and register its hooks; a component that several slots name is created once.

        Raises:
            PluginError: It cannot be created, or a hook of it does not fit.
        """
        twin = next((active for active in self._active if active.selected.component is selected.component), None)
        if twin:
            active = Active(twin.plugin, selected)
            self._active.append(active)
            return active
        label = describe(selected.entry)
        try:
            plugin = selected.component()
        except Exception as error:
            raise PluginError(f"{label} cannot be created: {type(error).__name__}: {error}.") from error
        try:
            self._pm.register(plugin, name=label)
            self._check_hook_names(plugin, label)
        except pluggy.PluginValidationError as error:
            raise PluginError(f"{label}: {error}") from error
        active = Active(plugin, selected)
        self._active.append(active)
        return active

    def call(self, active: Active, hook: str, **arguments: Any) -> Any:
        """Ask one component, with everybody's wrappers around it.

        Raises:
            PluginError: The component, or a wrapper, raised something that is not meant for the user.
        """
        caller = getattr(self._pm.hook, hook)
        rivals = {
            implementation.plugin
            for implementation in caller.get_hookimpls()
            if implementation.plugin is not active.plugin and not _wraps(implementation)
        }
        subset = self._pm.subset_hook_caller(hook, rivals)
        with self.attributed(hook, subset.get_hookimpls()):
            return subset(params=active.selected.params, **arguments)

    def broadcast(self, event: str, **arguments: Any) -> None:
        """Tell every active component. One that may fail and does is switched off, and the run goes on.

        Everybody is told, whoever fails.

        Raises:
            PluginError: Another component failed; of several the first.
        """
        failed: list[Exception] = []
        implementations = getattr(self._pm.hook, event).get_hookimpls()
        for owner, error in self._tell(event, arguments):
            if not FAMILIES[owner.selected.entry.family].may_fail or isinstance(error, OumiError):
                failed.append(error)
                continue
            self._pm.unregister(owner.plugin)
            label = describe(owner.selected.entry)
            _log.warning("%s failed in %s and is switched off: %s: %s", label, event, type(error).__name__, error)
        for error in failed[1:]:
            failed[0].add_note(f"Another failed too: {type(error).__name__}: {error}")
        with self.attributed(event, implementations):
            if failed:
                raise failed[0]

    def _tell(self, event: str, arguments: dict[str, Any]) -> Iterator[tuple[Active, Exception]]:
        """Call all implementations of an event, and yield who failed: pluggy itself stops at the first that does."""
        told: list[Any] = []
        while True:
            caller = self._pm.subset_hook_caller(event, told)
            implementations = caller.get_hookimpls()
            try:
                caller(**arguments)
            except Exception as error:
                owner = self._owner_of_implementation(error.__traceback__, implementations)
                if owner is None:
                    with self.attributed(event, implementations):
                        raise
                order = [each.plugin for each in reversed(implementations)]  # in which pluggy calls
                told += order[: order.index(owner.plugin) + 1]
                yield owner, error
            else:
                return

    @contextmanager
    def attributed(self, hook: str = "", implementations: Sequence[Any] = ()) -> Generator[None]:
        """Name the plugin whose code an exception passed through last.

        An error that is meant for the user keeps its type and gets a note. Any other exception that a hook let out,
        or that comes from somebody else's distribution, becomes a `PluginError` with the exception as its cause.
        """
        try:
            yield
        except OumiError as error:
            owner = self._owner_of_implementation(error.__traceback__, implementations)
            if owner:
                error.add_note(f"in {describe(owner.selected.entry)}, hook {hook}")
            raise
        except Exception as error:
            owner = self._owner_of_implementation(error.__traceback__, implementations) if hook else None
            owner = owner or self._owner_of_package(error.__traceback__)
            if owner is None:
                raise
            place = f", hook {hook}" if hook else ""
            message = f"{describe(owner.selected.entry)}{place}: {type(error).__name__}: {error}"
            raise PluginError(message) from error

    def entries(self) -> Iterator[Entry]:
        """Yield the entry of every active component, once."""
        seen: set[tuple[str, str]] = set()
        for active in self._active:
            entry = active.selected.entry
            if (entry.family, entry.name) not in seen:
                seen.add((entry.family, entry.name))
                yield entry

    def _check_hook_names(self, plugin: Component, label: str) -> None:
        """Refuse a hook that does not exist: pluggy alone would register it and never call it."""
        known = [name for spec in (BuildHooks, Events) for name in vars(spec) if name.startswith("oumi_")]
        for caller in self._pm.get_hookcallers(plugin) or ():
            if caller.name not in known:
                close = difflib.get_close_matches(caller.name, known, 1)
                hint = f" Did you mean {close[0]}?" if close else f" Hooks: {', '.join(known)}."
                raise PluginError(f"{label} implements {caller.name}, which is no hook.{hint}")

    def _owner_of_implementation(self, trace: TracebackType | None, implementations: Sequence[Any]) -> Active | None:
        plugins: dict[Any, list[Any]] = {}
        for implementation in implementations:  # several where a class is derived from another
            plugins.setdefault(inspect.unwrap(implementation.function).__code__, []).append(implementation.plugin)
        found = None
        while trace is not None:
            frame = trace.tb_frame
            mine = plugins.get(frame.f_code, [])
            instance = frame.f_locals.get(frame.f_code.co_varnames[0]) if mine and frame.f_code.co_varnames else None
            found = next((plugin for plugin in mine if plugin is instance), mine[-1] if mine else found)
            trace = trace.tb_next
        return next((active for active in self._active if active.plugin is found), None) if found else None

    def _owner_of_package(self, trace: TracebackType | None) -> Active | None:
        owners = {a.selected.component.__module__.partition(".")[0]: a for a in self._active}
        owners |= {a.selected.entry.value.partition(":")[0].partition(".")[0]: a for a in self._active}
        own = {name for name, active in owners.items() if active.selected.entry.distribution == "oumi-kernel"}
        found = None
        while trace is not None:
            package = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
            found = owners.get(package, found) if package not in own and package != "oumi_kernel" else found
            trace = trace.tb_next
        return found


def _wraps(implementation: Any) -> bool:
    return implementation.wrapper or implementation.hookwrapper
