"""What is installed: one pass over the metadata of distributions, which imports nothing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from oumi_kernel.component import Component
from oumi_kernel.errors import PluginError
from oumi_kernel.plugins.families import FAMILIES, SECTIONS_GROUP, normalise
from oumi_kernel.plugins.loading import load_component, load_section
from oumi_kernel.schema import Params

LOCAL = "local file"


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry point: a name of a component.

    Attributes:
        family: The family, such as `optimizers`.
        name: The name that a configuration writes.
        distribution: The distribution that offers it, or `local file`.
        version: The version of that distribution.
        value: What is imported: `module:object`.
        also: Other names of the same object.
        rivals: Labels of other distributions that offer the same name; not empty is a clash.
    """

    family: str
    name: str
    distribution: str
    version: str
    value: str
    also: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Distribution and version, as messages name them."""
        return f"{self.distribution} {self.version}".strip()

    @property
    def state(self) -> str:
        """What can be said without importing anything: `ready`, `clash: ...` or `broken: ...`."""
        if self.rivals:
            return f"clash: also in {', '.join(self.rivals)}; write {self.distribution}:{self.name}"
        module = self.value.partition(":")[0]
        return "ready" if _module_exists(module) else f"broken: no module named '{module}'"


class Catalogue:
    """Everything that is installed, sorted, so that every process sees the same order."""

    def __init__(self, entries: Iterable[Entry], sections: Iterable[Entry] = ()) -> None:
        """Take entries as they were found; names and clashes are worked out here."""
        self.entries = _cross_reference(entries)
        self._sections = tuple(sorted(sections, key=_order))
        self._loaded: dict[tuple[str, str, str], type[Component]] = {}
        self._by_name: dict[tuple[str, str], list[Entry]] = defaultdict(list)
        for entry in self.entries:
            self._by_name[entry.family, normalise(entry.name)].append(entry)

    def names(self, family: str) -> tuple[str, ...]:
        """Return the names of a family, sorted."""
        return tuple(sorted({entry.name for entry in self.entries if entry.family == family}))

    @property
    def sections(self) -> tuple[str, ...]:
        """Top-level sections that installed plugins own."""
        return tuple(entry.name for entry in self._sections)

    def find(self, family: str, name: str) -> Entry | None:
        """Return the component of that name, or None if there is none.

        `distribution:name` chooses between distributions that offer the same name.

        Raises:
            PluginError: Two distributions offer the name.
        """
        found = self._by_name.get((family, normalise(name)), [])
        if not found and ":" in name:
            owner, _, bare = name.partition(":")
            found = [e for e in self._by_name.get((family, normalise(bare)), []) if _same(e.distribution, owner)]
        elif len(found) > 1:
            choices = " or ".join(f"'{entry.distribution}:{entry.name}' ({entry.label})" for entry in found)
            raise PluginError(
                f"{FAMILIES[family].noun} '{name}' is offered by {len(found)} distributions: write {choices}, "
                "or uninstall one of them."
            )
        return found[0] if found else None

    def load(self, entry: Entry) -> type[Component]:
        """Import one component; names of one object give one class.

        Raises:
            PluginError: It cannot be imported, is not a component of its family, or needs a newer kernel.
        """
        key = (entry.family, entry.distribution, entry.value)
        if key not in self._loaded:
            self._loaded[key] = load_component(entry)
        return self._loaded[key]

    def section(self, name: str) -> tuple[Entry, type[Params]]:
        """Return the owner and the struct of a plugin's own top-level section.

        Raises:
            PluginError: Two distributions own the section, or the struct cannot be imported.
        """
        owners = [entry for entry in self._sections if entry.name == name]
        if len(owners) > 1:
            raise PluginError(f"section '{name}' is owned by {' and by '.join(entry.label for entry in owners)}.")
        return owners[0], load_section(owners[0])


def scan(local: Sequence[str] = ()) -> Catalogue:
    """Read the catalogue of this environment.

    Args:
        local: Components outside any package, each `path/to/file.py:name` or `module:name`; they serve as dataset
            or metric under that name.

    The current folder is not searched: a folder that somebody downloaded must not bring plugins of its own.
    """
    here = Path.cwd()
    path = [entry for entry in sys.path if entry and Path(entry).resolve() != here]
    entries: list[Entry] = []
    sections: list[Entry] = []
    seen: set[str] = set()
    for distribution in importlib.metadata.distributions(path=path):
        text = distribution.read_text("entry_points.txt")
        if not text or "oumi." not in text:
            continue
        name = distribution.metadata["Name"] or "unnamed distribution"
        if normalise(name) in seen:  # the same distribution twice on the path: the first one is what imports see
            continue
        seen.add(normalise(name))
        for point in distribution.entry_points:
            entry = Entry(
                family=point.group.removeprefix("oumi."),
                name=point.name,
                distribution=name,
                version=distribution.version,
                value=point.value,
            )
            if point.group == SECTIONS_GROUP:
                sections.append(entry)
            elif point.group.startswith("oumi.") and entry.family in FAMILIES:
                entries.append(entry)
    entries.extend(entry for reference in local for entry in _local_entries(reference))
    return Catalogue(entries, sections)


def _local_entries(reference: str) -> list[Entry]:
    file, colon, name = reference.rpartition(":")
    if not colon or not file or not name:
        raise PluginError(f"--plugin {reference}: write path/to/file.py:name, such as ./my_metric.py:bleu.")
    families = [family.name for family in FAMILIES.values() if family.takes_callables]
    value = f"{Path(file).resolve() if file.endswith('.py') else file}:{name}"
    return [Entry(family=family, name=name, distribution=LOCAL, version="", value=value) for family in families]


def _order(entry: Entry) -> tuple[str, str, str, str]:
    return entry.family, normalise(entry.name), entry.distribution, entry.value


def _same(left: str, right: str) -> bool:
    return normalise(left) == normalise(right)


def _cross_reference(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    found = sorted(entries, key=_order)
    names: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    owners: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in found:
        names[entry.family, entry.distribution, entry.value].append(entry.name)
        owners[entry.family, normalise(entry.name)].append(entry)
    return tuple(
        msgspec.structs.replace(
            entry,
            also=tuple(n for n in names[entry.family, entry.distribution, entry.value] if n != entry.name),
            rivals=tuple(o.label for o in owners[entry.family, normalise(entry.name)] if o is not entry),
        )
        for entry in found
    )


def _module_exists(module: str) -> bool:
    """Whether a module's file is there; nothing is imported, not even the packages above it."""
    if module.endswith(".py"):
        return Path(module).is_file()
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    if spec is None or not rest:
        return spec is not None
    roots = [Path(location) for location in spec.submodule_search_locations or ()]
    relative = Path(*rest)
    return any((root / relative).is_dir() or (root / relative).with_suffix(".py").is_file() for root in roots)
