"""The JSON Schema of a configuration: msgspec's, with the spellings that the loader takes and what is installed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from typing import Any

import msgspec
from msgspec import inspect

from oumi_kernel.cli.keys import NAMING_KEYS, REQUIRED, Key, all_keys, keys_of
from oumi_kernel.config import TrainingConfig
from oumi_kernel.errors import PluginError
from oumi_kernel.loading.aliases import ALIASES, SWITCHES
from oumi_kernel.plugins import Catalogue
from oumi_kernel.plugins.families import DEFAULT
from oumi_kernel.schema import dump

Schema = dict[str, Any]

_REFERENCE = {"$ref": "#/$defs/Reference"}
_ANY_CASE = re.compile(r"\(\?i:([^()]*)\)")


def build_schema(catalogue: Catalogue) -> Schema:
    """Return the JSON Schema (draft 2020-12) of the whole configuration.

    Names of installed components are offered, not required: a name may also be a hub id, or one that is installed
    where the configuration runs. The parameters of the default components, and sections that plugins own, are
    described by importing those; a section whose plugin is broken is left open. It is stricter than the loader where
    that merely tolerates a spelling: mixed case in a choice, quotes around a number, a bare number as text.
    """
    body, definitions = _components(TrainingConfig)
    document: Schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "oumi configuration",
        **body,
        "$defs": definitions,
    }
    definitions["Reference"] = {
        "description": "A value from the environment or from another key.",
        "type": "string",
        "pattern": r"\$\{(env|ref):",
    }
    _offer_names(definitions, catalogue)
    homes = {key.path: key.struct.__name__ for key in all_keys().values() if key.struct and not key.repeated}
    homes |= _describe_default_parameters(definitions, catalogue)
    _add_spellings(definitions, homes)
    _add_sections(document, catalogue)
    return document


def _components(struct: type[msgspec.Struct], prefix: str = "") -> tuple[Schema, dict[str, Schema]]:
    """Return the schema of a struct, a reference, and the definitions that it and everything below it needs.

    A `prefix` of their names keeps plugins' structs apart, which may be named like others.
    """
    (body,), found = msgspec.json.schema_components([struct], ref_template=f"#/$defs/{prefix}{{name}}")
    definitions: dict[str, Schema] = {}
    for cls in _classes(struct):
        schema = found[cls.__name__]
        definitions[prefix + cls.__name__] = _enum(cls) if issubclass(cls, Enum) else _section(cls, schema)
    return body, definitions


def _classes(struct: type[msgspec.Struct]) -> Iterator[type[Any]]:
    """Yield each struct and enum that a struct is made of, once."""
    seen: dict[type[Any], None] = {struct: None}
    for key in all_keys(struct).values():
        for kind in _leaves(inspect.type_info(key.type)):
            if isinstance(kind, inspect.StructType | inspect.EnumType):
                seen[kind.cls] = None
    yield from seen


def _leaves(kind: inspect.Type) -> Iterator[inspect.Type]:
    if isinstance(kind, inspect.Metadata):
        yield from _leaves(kind.type)
    elif isinstance(kind, inspect.ListType):
        yield from _leaves(kind.item_type)
    elif isinstance(kind, inspect.UnionType):
        for member in kind.types:
            yield from _leaves(member)
    else:
        yield kind


def _enum(cls: type[Enum]) -> Schema:
    """Return every usual spelling: names and values, lower and upper case, `-` for `_`, and other spellings."""
    words = [str(word) for member in cls for word in (member.name, member.value)]
    words += list(getattr(cls, "__aliases__", {}))
    cases = [case(word) for word in words for case in (str.lower, str.upper)]
    spellings = dict.fromkeys(other for word in cases for other in (word, word.replace("_", "-")))
    numbers = [member.value for member in cls if isinstance(member.value, int)] + [
        int(w) for w in words if w.isdecimal()
    ]
    doc = (cls.__doc__ or "").strip()
    return {"description": doc, "enum": [*spellings, *dict.fromkeys(numbers)]}


def _section(cls: type[msgspec.Struct], schema: Schema) -> Schema:
    properties = {key.name: _property(key, schema["properties"][key.name]) for key in keys_of(cls)}
    return {**schema, "description": (cls.__doc__ or "").strip(), "properties": properties}


def _property(key: Key, schema: Schema) -> Schema:
    """Return what one key takes, as msgspec says, and what the loader reads as such besides."""
    bare = {name: value for name, value in schema.items() if name not in ("default", "description")}
    is_plain_text = bare == {"type": "string"}
    is_tree = bare.get("type") in ("object", "array")
    forms = bare["anyOf"] if set(bare) == {"anyOf"} else [_ecma(bare)]
    if key.struct is not None and not key.repeated:
        forms = [*forms, {"type": "null"}]  # an empty section has its defaults
    elif not is_plain_text and not is_tree:
        forms = [*map(_ecma, forms), _REFERENCE]
    described: Schema = {"description": key.doc} if key.doc else {}
    described |= forms[0] if len(forms) == 1 else {"anyOf": forms}
    if key.default is not REQUIRED and key.struct is None:
        described["default"] = dump(key.default)
    return described


def _ecma(schema: Schema) -> Schema:
    """Write `(?i:...)` of a pattern in the dialect of JSON Schema, which has no such flag."""
    if "pattern" not in schema:
        return schema
    return {**schema, "pattern": _ANY_CASE.sub(lambda match: f"({_both_cases(match[1])})", schema["pattern"])}


def _both_cases(pattern: str) -> str:
    return "".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else c for c in pattern)


def _offer_names(definitions: dict[str, Schema], catalogue: Catalogue) -> None:
    for naming in NAMING_KEYS:
        owner, name = _owner(naming.path)
        prop = definitions[owner]["properties"][name]
        installed = [word for word in catalogue.names(naming.family) if word != DEFAULT]
        kept = {k: prop.pop(k) for k in ("type", "anyOf", "minLength") if k in prop}
        prop["anyOf"] = [{"enum": installed}] * bool(installed) + (kept.pop("anyOf", None) or [kept])


def _describe_default_parameters(definitions: dict[str, Schema], catalogue: Catalogue) -> dict[str, str]:
    """Type the `*_kwargs` of a component where the configuration leaves the choice to the default.

    Returns:
        Key of parameters -> name of the definition that types them.
    """
    homes: dict[str, str] = {}
    for naming in NAMING_KEYS:
        default = all_keys()[naming.path].default
        if not naming.kwargs or not isinstance(default, str):
            continue
        try:
            entry = catalogue.find(naming.family, default)
            params = catalogue.load(entry).params_type if entry else None
        except PluginError:  # its parameters stay open; whoever uses it is told
            continue
        if entry is None or params is None:
            continue
        body, found = _components(params, f"{naming.family}.")
        definitions.update(found)
        homes[naming.kwargs] = f"{naming.family}.{params.__name__}"
        owner, name = _owner(naming.path)
        chosen = {"properties": {name: {"enum": [default, *entry.also]}}}
        typed = {"properties": {naming.kwargs.rpartition(".")[2]: {"anyOf": [body, {"type": "null"}]}}}
        definitions[owner].setdefault("allOf", []).append({"if": chosen, "then": typed})
    return homes


def _add_spellings(definitions: dict[str, Schema], homes: dict[str, str]) -> None:
    """Take the other spellings of keys that the loader takes."""
    for alias in ALIASES:
        section, _, old = alias.old.rpartition(".")
        target, _, new = alias.new.rpartition(".")
        meant = definitions[homes[target]]["properties"].get(new) if target in homes else None
        if meant is None or section not in homes:
            continue
        forms = {name: value for name, value in meant.items() if name not in ("default", "description")}
        forms = {"anyOf": [{"type": "boolean"}, _REFERENCE]} if alias.old in SWITCHES else forms
        properties = definitions[homes[section]]["properties"]
        properties[old] = {"description": f"Another spelling of `{alias.new}`.", **forms}


def _add_sections(document: Schema, catalogue: Catalogue) -> None:
    root = document["$defs"][TrainingConfig.__name__]
    for name in catalogue.sections:
        try:
            _, struct = catalogue.section(name)
        except PluginError as error:
            root["properties"][name] = {"description": f"Cannot be described: {error}"}
            continue
        body, found = _components(struct, f"{name}.")
        document["$defs"].update(found)
        root["properties"][name] = {"anyOf": [body, {"type": "null"}]}


def _owner(path: str) -> tuple[str, str]:
    """Return the name of the struct that holds a key, and the key's own name."""
    parent, _, name = path.rpartition(".")
    struct = all_keys()[parent.removesuffix("[]")].struct
    return (struct or TrainingConfig).__name__, name
