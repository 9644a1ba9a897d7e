"""`oumi config explain`: what a key means, what it takes, its value, and where that comes from."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from oumi_kernel.cli.configuration import open_config
from oumi_kernel.cli.keys import REQUIRED, Key, all_keys, keys_of, pattern_of, write
from oumi_kernel.errors import ConfigError, Problem
from oumi_kernel.loading import LoadedConfig, Override, load_text
from oumi_kernel.loading.aliases import ALIASES
from oumi_kernel.loading.describe import expectation
from oumi_kernel.manifest import effective_config
from oumi_kernel.plugins import Catalogue, Resolution, resolve, scan
from oumi_kernel.plugins.keys import value_at

_WITHOUT_FILE = "model:\n  model_name: unset/unset\ndata:\n  train:\n    datasets:\n      - dataset_name: unset/unset\n"
"""The least that loads; its values are never shown."""

_DOTTED_INDEX = re.compile(r"\.(\d+)(?=\.|$)")


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What one explanation draws on.

    Attributes:
        loaded: The configuration.
        named: Whether the user named one; otherwise there are only defaults and flags.
        effective: The whole configuration as plain data; values from the environment by the variable's name.
        components: Key of parameters -> the struct that types them, and who offers it.
    """

    loaded: LoadedConfig
    named: bool
    effective: dict[str, Any]
    components: Mapping[str, tuple[type[msgspec.Struct], str]]


def explain(
    key: str,
    config: str | None = None,
    /,
    *,
    plugin: Annotated[Sequence[str], Parameter(show_default=False)] = (),
    overrides: Annotated[Sequence[Override], Parameter(parse=False)],
) -> None:
    """Explain one key, or list the keys of a section.

    Args:
        key: Such as training.learning_rate, peft, or training.optimizer_kwargs.amsgrad.
        config: A YAML file, or the name of a shipped configuration; without one, the defaults.
        plugin: A dataset or metric from a local file: ./my_metric.py:bleu. May be repeated.
        overrides: Keys given on the command line.

    Raises:
        ConfigError: There is no such key, or the configuration is wrong.
    """
    asked = _DOTTED_INDEX.sub(r"[\1]", key.removeprefix("--"))
    path = next((alias.new for alias in ALIASES if alias.old == asked), asked)
    loaded, catalogue = _open(config, overrides, plugin)
    resolution = resolve(loaded, catalogue)
    if loaded.problems or resolution.problems:
        sys.stderr.write(f"{config or 'the defaults'}: has problems; 'oumi config validate' shows them.\n")
    view = View(
        loaded=loaded,
        named=config is not None,
        effective=effective_config(loaded),
        components=_components(path, resolution, catalogue),
    )
    found, owner = _find(path, view)
    head = [f"'{asked}' is another spelling of it."] if asked != path else []
    body = _section(found, path, view) if found.struct and not found.repeated else _value(found, path, view)
    lines = (*found.doc.splitlines(), *([owner] if owner else []), *head, "", *body)
    sys.stdout.write(f"{path}\n" + "".join(f"  {line}".rstrip() + "\n" for line in lines))


def _open(config: str | None, overrides: Sequence[Override], plugins: Sequence[str]) -> tuple[LoadedConfig, Catalogue]:
    if config is not None:
        return open_config(config, overrides, plugins)
    catalogue = scan(plugins)
    return load_text(_WITHOUT_FILE, "defaults", overrides, sections=catalogue.sections), catalogue


def _components(
    path: str, resolution: Resolution, catalogue: Catalogue
) -> Mapping[str, tuple[type[msgspec.Struct], str]]:
    """Return the structs of the selected components' parameters, and of the plugin's section that `path` is in."""
    found: dict[str, tuple[type[msgspec.Struct], str]] = {
        choice.kwargs_path: (choice.component.params_type, f"of {choice.entry.name}, from {choice.entry.label}")
        for choice in resolution.selected
        if choice.kwargs_path
    }
    section = pattern_of(path).partition(".")[0]
    if section in catalogue.sections:
        entry, struct = catalogue.section(section)
        found[section] = (struct, f"from {entry.label}")
    return found


def _find(path: str, view: View) -> tuple[Key, str]:
    """Return the key at a path and, for a component's parameter, who it belongs to."""
    pattern = pattern_of(path).removesuffix("[]")
    table = all_keys()
    for parent, (struct, owner) in view.components.items():
        inner = all_keys(struct, pattern_of(parent))
        if pattern in inner:
            return inner[pattern], f"Parameter {owner}."
        if pattern == pattern_of(parent):
            whole = table.get(pattern)
            doc = whole.doc if whole else (struct.__doc__ or "")
            return Key(path=pattern, type=struct, default={}, doc=doc, struct=struct), f"Parameters {owner}."
        table = table | inner
    if pattern in table:
        return table[pattern], ""
    raise ConfigError(
        Problem(code="unknown-key", path=path, message="there is no such key.", hint=_hint(pattern, table))
    )


def _hint(pattern: str, table: dict[str, Key]) -> str:
    """Return keys of that name in other sections, else the nearest spellings."""
    parent, _, name = pattern.rpartition(".")
    if parent in table and table[parent].struct is None and isinstance(table[parent].default, dict):
        return f"{parent} holds keys of your own, which are passed on; explain {parent} instead."
    close = [path for path in table if path.rpartition(".")[2] == name]
    close = close or difflib.get_close_matches(pattern, table, 2, 0.75)
    close = close or [path for path in table if difflib.get_close_matches(name, [path.rpartition(".")[2]], 1, 0.8)]
    if close:
        return f"did you mean {' or '.join(repr(path) for path in close[:3])}?"
    return f"The sections are {', '.join(path for path in table if '.' not in path)}; explain one to see its keys."


def _section(key: Key, path: str, view: View) -> Iterator[str]:
    keys = keys_of(key.struct, key.path) if key.struct else ()
    width = max((len(inner.name) for inner in keys), default=0)
    for inner in keys:
        yield f"{inner.name:<{width}}  {expectation(inner.type)}{_now(inner, f'{path}.{inner.name}', view)}"
    if not keys:
        yield "It has no keys."


def _value(key: Key, path: str, view: View) -> Iterator[str]:
    yield f"type     {expectation(key.type)}"
    yield f"default  {write(key.default)}"
    if key.struct is not None and key.repeated:
        yield f"keys     {', '.join(inner.name for inner in keys_of(key.struct))}"
    value = _current(path, key, view)
    if value is not REQUIRED:
        yield f"value    {write(value)}"
        yield f"from     {_origin(path, view)}"


def _now(key: Key, path: str, view: View) -> str:
    """Return the rest of a key's row: its value if it was given, else its default."""
    if key.struct is not None:
        return ""
    if _given(path, view):
        return f"; {write(_current(path, key, view))} ({_origin(path, view)})"
    return "; required" if key.default is REQUIRED else f"; default {write(key.default)}"


def _given(path: str, view: View) -> bool:
    origin = view.loaded.document.origin(path)
    return origin.kind != "default" and (view.named or (origin.place is not None and not origin.place.line))


def _current(path: str, key: Key, view: View) -> Any:
    """Return the effective value at a path; the key's default where the path has none, such as without an index."""
    if not _given(path, view):
        return key.default
    try:
        return value_at(view.effective, path)
    except (AttributeError, KeyError, IndexError):
        return key.default


def _origin(path: str, view: View) -> str:
    if not _given(path, view):
        return "the default"
    origin = view.loaded.document.origin(path)
    where = str(origin.place) if origin.place else origin.kind
    line = origin.place.text.strip() if origin.place else ""
    note = f"written as {origin.note}" if origin.note else ""
    return ", ".join(part for part in (f"{where}  {line}".rstrip(), note) if part)
