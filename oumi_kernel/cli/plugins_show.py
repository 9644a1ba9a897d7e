"""`oumi plugins show`: one component, or all that have a name."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import itertools
import sys
from collections.abc import Iterator, Sequence

from oumi_kernel.cli.keys import NAMING_KEYS, Key, keys_of, write
from oumi_kernel.component import Combination, Component
from oumi_kernel.errors import PluginError
from oumi_kernel.loading.describe import expectation
from oumi_kernel.plugins import FAMILIES, Catalogue, Entry, scan
from oumi_kernel.plugins.families import normalise
from oumi_kernel.plugins.slots import switch_of


def show(name: str, /) -> None:
    """Show what a component does, where it comes from, its parameters and its hooks.

    Args:
        name: Its name, with family: before it where several have that name.

    Raises:
        PluginError: No component has the name, or one that has it is broken.
    """
    catalogue = scan()
    broken: list[str] = []
    for number, entry in enumerate(_named(name, catalogue)):
        sys.stdout.write("\n" * (number > 0))
        sys.stdout.write("".join(f"{line}\n" for line in _whence(entry)))
        try:
            component = catalogue.load(entry)
        except PluginError as error:
            broken.append(str(error))
        else:
            sys.stdout.write("".join(f"{line}\n" for line in _what(entry, component)))
    if broken:
        raise PluginError("\n".join(broken))


def _named(name: str, catalogue: Catalogue) -> list[Entry]:
    prefix, colon, bare = name.rpartition(":")
    found = [
        entry
        for entry in catalogue.entries
        if normalise(entry.name) == normalise(bare)
        and (not colon or normalise(prefix) in (normalise(entry.family), normalise(entry.distribution)))
    ]
    if found:
        return found
    known = sorted({entry.name for entry in catalogue.entries})
    close = difflib.get_close_matches(bare, known, 3)
    hint = f"Did you mean {' or '.join(map(repr, close))}?" if close else "'oumi plugins list' shows what is installed."
    raise PluginError(f"no component is named '{name}'. {hint}")


def _whence(entry: Entry) -> Iterator[str]:
    yield f"{FAMILIES[entry.family].noun} {entry.name}"
    if entry.also:
        yield f"  also named    {', '.join(entry.also)}"
    yield f"  distribution  {entry.label}"
    yield f"  entry point   {FAMILIES[entry.family].group}: {entry.name} = {entry.value}"
    yield f"  chosen by     {_choice(entry)[0]}"
    if entry.state != "ready":
        yield f"  state         {entry.state}"


def _what(entry: Entry, component: type[Component]) -> Iterator[str]:
    for module, requirement in component.requires.items():
        there = "" if importlib.util.find_spec(module) else f" (missing: pip install '{requirement}')"
        yield f"  needs         {module}{there}"
    doc = inspect.cleandoc(component.__doc__ or "") if component.__doc__ != Component.__doc__ else ""
    yield from ("", *(f"  {line}".rstrip() for line in doc.splitlines())) if doc else ()
    yield ""
    yield from _parameters(entry, keys_of(component.params_type))
    hooks = [hook for hook in dir(component) if getattr(getattr(component, hook), "oumi_impl", None)]
    yield f"  Hooks: {', '.join(hooks) or 'none'}"
    for title, table in (("Does not serve", component.unserved), ("Has no effect on", component.without_effect)):
        if table:
            yield f"  {title}:"
            yield from (f"    {key}: {reason}" for key, reason in table.items())
    yield from _together(component.combinations())


def _together(combinations: Sequence[Combination]) -> Iterator[str]:
    """Yield what trains with a component, by kind, and what is refused and why."""
    axes = list(dict.fromkeys(one.axis for one in combinations))
    for title, refused in (("Trains with", False), ("Is refused with", True)):
        chosen = [one for one in combinations if bool(one.refused) is refused]
        chosen.sort(key=lambda one: (axes.index(one.axis), one.refused))
        if chosen:
            yield f"  {title}:"
        for (axis, reason), found in itertools.groupby(chosen, key=lambda one: (one.axis, one.refused)):
            names = "; ".join(one.name for one in found)
            yield f"    {axis}: {names}" + (f": {reason}" if refused else "")


def _choice(entry: Entry) -> tuple[str, str]:
    """Return what in a configuration chooses a component, and the key of its parameters; empty where there is none."""
    key = next((key for key in NAMING_KEYS if key.family == entry.family), None)
    return (f"{key.path}: {entry.name}", key.kwargs) if key else switch_of(entry.family, (entry.name, *entry.also))


def _parameters(entry: Entry, keys: tuple[Key, ...]) -> Iterator[str]:
    where = _choice(entry)[1]
    if not keys:
        yield "  No parameters of its own."
        return
    yield f"  Parameters{f' ({where})' if where else ''}:"
    for key in keys:
        yield f"    {key.name}: {expectation(key.type)}; default {write(key.default)}"
        yield from (f"      {line}" for line in key.doc.splitlines())
