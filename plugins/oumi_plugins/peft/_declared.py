"""Parameters of the library's methods, as its own config classes declare them; read from source, nothing imported.

So that a config is checked without importing torch, and no parameter is listed twice.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union

import msgspec
from msgspec import Meta

from oumi_kernel import Params

LIBRARY = "peft"
ROOT = "PeftConfig"
"""The class whose fields are the library's own business, not a method's parameters."""
PLAIN: dict[str, Any] = {"bool": bool, "int": int, "float": float, "str": str, "dict": dict, "Any": Any, "None": None}
Bases = tuple[type[Params], ...]
GENERIC: dict[str, Any] = {"list": list, "dict": dict, "tuple": tuple, "List": list, "Dict": dict, "Tuple": tuple}


def declared(module: str, name: str, *, without: Collection[str], bases: Bases) -> type[Params]:
    """Return a closed struct with the fields of a config class of the library.

    Where the library is not installed the struct takes anything: what is missing is then said by `requires`.

    Args:
        module: Its module, such as `peft.tuners.lora.config`.
        name: Its name.
        without: Fields that are no parameters: the section covers them, or the model decides.
        bases: Structs with further parameters.
    """
    if importlib.util.find_spec(LIBRARY) is None:
        return _made(f"{name}Params", {}, {}, bases, closed=False)
    return _struct(f"{name}Params", _fields(module, name), frozenset(without), bases)


def field_names(module: str, name: str) -> frozenset[str]:
    """Return the fields of a config class of the library; none where it is not installed."""
    return frozenset(_fields(module, name) if importlib.util.find_spec(LIBRARY) else ())


class _Field(msgspec.Struct, frozen=True):
    """A field of a dataclass, and the module that declares it."""

    annotation: ast.expr
    value: ast.expr | None
    module: str


@functools.cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_file(module).read_text(encoding="utf-8"))


def _file(module: str) -> Path:
    spec = importlib.util.find_spec(LIBRARY)
    assert spec is not None  # noqa: S101 - callers have looked
    assert spec.submodule_search_locations  # noqa: S101 - it is a package
    stem = Path(spec.submodule_search_locations[0], *module.split(".")[1:])
    return stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")


def _find(module: str, name: str) -> tuple[str, ast.ClassDef] | None:
    """Return the class that a module defines or imports under a name, and the module that defines it."""
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
            source = _absolute(module, node)
            return _find(source, name) if source.startswith(f"{LIBRARY}.") else None
    return None


def _absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    is_package = _file(module).name == "__init__.py"
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _fields(module: str, name: str) -> dict[str, _Field]:
    """Return the fields of a dataclass, those that it inherits first."""
    found = _find(module, name)
    if found is None or name == ROOT:
        return {}
    module, node = found
    fields: dict[str, _Field] = {}
    for base in node.bases:
        if isinstance(base, ast.Name):
            fields.update(_fields(module, base.id))
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and _is_parameter(item.value):
            fields[item.target.id] = _Field(item.annotation, item.value, module)
    return fields


def _is_parameter(value: ast.expr | None) -> bool:
    return _keyword(value, "init") is not False


def _struct(name: str, fields: Mapping[str, _Field], without: frozenset[str], bases: Bases) -> type[Params]:
    known = without.union(*(base.__struct_fields__ for base in bases))
    kinds: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    for key, field in fields.items():
        if key in known:
            continue
        kind, default = _type(field.annotation, field.module), _default(field)
        if isinstance(kind, type) and issubclass(kind, Params) and default is not msgspec.NODEFAULT:
            kind, default = Optional[kind], None  # noqa: UP045 - the member is a value
        kinds[key] = _described(kind, field)
        if default is not msgspec.NODEFAULT:
            defaults[key] = default
    return _made(name, kinds, defaults, bases, closed=True)


def _made(
    name: str, kinds: Mapping[str, Any], defaults: Mapping[str, Any], bases: Bases, *, closed: bool
) -> type[Params]:
    body = {"__annotations__": dict(kinds), "__module__": __name__, **defaults}
    make: Any = type(Params)
    return make(name, bases, body, forbid_unknown_fields=closed)


def _described(kind: Any, field: _Field) -> Any:
    metadata = _keyword(field.value, "metadata")
    text = " ".join(str(metadata.get("help", "")).split()) if isinstance(metadata, dict) else ""
    return Annotated[kind, Meta(description=text)] if text else kind


def _type(node: ast.expr, module: str) -> Any:
    """Return the type that an annotation means, as far as YAML can write it."""
    if isinstance(node, ast.Constant) and node.value is None:
        return None
    if isinstance(node, ast.Name):
        return PLAIN[node.id] if node.id in PLAIN else _named(module, node.id)
    if isinstance(node, ast.BinOp):
        return _union([_type(node.left, module), _type(node.right, module)])
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        inner = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
        if node.value.id == "Literal":
            return Literal[tuple(ast.literal_eval(item) for item in inner)]  # pyright: ignore
        kinds = [_type(item, module) for item in inner]
        if node.value.id == "Optional":
            return Optional[kinds[0]]  # noqa: UP045 - the member is a value
        if node.value.id == "Union":
            return _union(kinds)
        if node.value.id in GENERIC:
            return GENERIC[node.value.id][tuple(kinds) if len(kinds) > 1 else kinds[0]]
    return Any


def _named(module: str, name: str) -> Any:
    """Return a struct for another dataclass of the library, and the values of an enumeration."""
    found = _find(module, name)
    if found is None:
        return Any
    module, node = found
    bases = {base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in node.bases}
    if "Enum" in bases:
        values = [item.value for item in node.body if isinstance(item, ast.Assign)]
        return Literal[tuple(ast.literal_eval(value) for value in values)]  # pyright: ignore
    return _struct(name, _fields(module, name), frozenset(), (Params,))


def _union(kinds: list[Any]) -> Any:
    """Return the union, without members that a closed one beside them makes pointless: text, or any mapping."""
    has_struct = any(isinstance(kind, type) and issubclass(kind, msgspec.Struct) for kind in kinds)
    has_words = any(getattr(kind, "__origin__", None) is Literal for kind in kinds)
    kept = [kind for kind in kinds if not (kind is dict and has_struct) and not (kind is str and has_words)]
    return Union[tuple(kept)]  # noqa: UP007 - the members are values


def _default(field: _Field) -> Any:
    """Return the default of a field; `NODEFAULT` where it must be given."""
    value = field.value
    if isinstance(value, ast.Call):
        factory = _keyword(value, "default_factory")
        default = {"dict": {}, "list": []}.get(factory) if isinstance(factory, str) else _keyword(value, "default")
    else:
        default = msgspec.NODEFAULT if value is None else _literal(value)
    if default is None and "None" not in (text := ast.unparse(field.annotation)) and "Optional" not in text:
        return msgspec.NODEFAULT  # no value yet: a number of which the library says None
    return default


def _keyword(value: ast.expr | None, name: str) -> Any:
    """Return a keyword argument of a call; `NODEFAULT` where it has none."""
    keywords = value.keywords if isinstance(value, ast.Call) else []
    return next((_literal(item.value) for item in keywords if item.arg == name), msgspec.NODEFAULT)


def _literal(node: ast.expr) -> Any:
    """Return the value of an expression, or the name that it ends with: of a class, or of a value of an enumeration."""
    if isinstance(node, ast.Name | ast.Attribute):
        return node.id if isinstance(node, ast.Name) else node.attr
    return ast.literal_eval(node)
