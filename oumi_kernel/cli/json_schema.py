"""The JSON Schema of a configuration: msgspec's, made as lenient as the loader and as knowing as the catalogue."""

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
from oumi_kernel.plugins import Catalogue
from oumi_kernel.schema import dump

Schema = dict[str, Any]

_REFERENCE = {"$ref": "#/$defs/Reference"}
_ANY_CASE = re.compile(r"\(\?i:([^()]*)\)")


def build_schema(catalogue: Catalogue) -> Schema:
    """Return the JSON Schema (draft 2020-12) of the whole configuration.

    Names of installed components are offered, not required: a name may also be a hub id, or one that is installed
    where the configuration runs. The parameters of the default components, and sections that plugins own, are
    described by importing those; a section whose plugin is broken is left open.
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
    _describe_default_parameters(definitions, catalogue)
    _add_sections(document, catalogue)
    return document


def _components(struct: type[msgspec.Struct]) -> tuple[Schema, dict[str, Schema]]:
    """Return the schema of a struct, a reference, and the definitions that it and everything below it needs."""
    (body,), found = msgspec.json.schema_components([struct], ref_template="#/$defs/{name}")
    definitions: dict[str, Schema] = {}
    for cls in _classes(struct):
        schema = found[cls.__name__]
        definitions[cls.__name__] = _enum(cls) if issubclass(cls, Enum) else _section(cls, schema)
    return body, definitions


def _classes(struct: type[msgspec.Struct]) -> Iterator[type[Any]]:
    """Yield each struct and enum that a struct is made of, once."""
    seen: dict[type[Any], None] = {struct: None}
    for key in all_keys(struct).values():
        for kind in _leaves(key.type):
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
        names = [{"enum": list(catalogue.names(naming.family))}] if catalogue.names(naming.family) else []
        kept = {k: prop.pop(k) for k in ("type", "anyOf", "minLength") if k in prop}
        forms = kept.pop("anyOf", None) or [kept]
        prop["anyOf"] = [*names, *(form for form in forms if form not in names)]


def _describe_default_parameters(definitions: dict[str, Schema], catalogue: Catalogue) -> None:
    """Type the `*_kwargs` of a component where the configuration leaves the choice to the default."""
    for naming in NAMING_KEYS:
        default = all_keys()[naming.path].default
        if not naming.kwargs or not isinstance(default, str):
            continue
        entry = catalogue.find(naming.family, default)
        if entry is None:
            continue
        params = catalogue.load(entry).params_type
        body, found = _components(params)
        definitions |= found
        owner, name = _owner(naming.path)
        same = [default, *entry.also]
        section = definitions[owner]
        section.setdefault("allOf", []).append(
            {
                "if": {"properties": {name: {"enum": same}}},
                "then": {"properties": {naming.kwargs.rpartition(".")[2]: {"anyOf": [body, {"type": "null"}]}}},
            }
        )


def _add_sections(document: Schema, catalogue: Catalogue) -> None:
    root = document["$defs"][TrainingConfig.__name__]
    for name in catalogue.sections:
        try:
            _, struct = catalogue.section(name)
        except PluginError as error:
            root["properties"][name] = {"description": f"Cannot be described: {error}"}
            continue
        body, found = _components(struct)
        document["$defs"] |= found
        root["properties"][name] = {"anyOf": [body, {"type": "null"}]}


def _owner(path: str) -> tuple[str, str]:
    """Return the name of the struct that holds a key, and the key's own name."""
    parent, _, name = path.rpartition(".")
    struct = all_keys()[parent.removesuffix("[]")].struct
    return (struct or TrainingConfig).__name__, name
