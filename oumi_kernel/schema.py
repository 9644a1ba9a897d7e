"""The one place that knows msgspec's ways: the base of every configuration struct, enums, ranges, docs of fields."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator
from enum import Enum
from typing import Annotated, Any, dataclass_transform

import msgspec
from msgspec import Meta

FINITE = 1.7976931348623157e308
"""The largest finite float: `le=FINITE` is what refuses nan and inf, which pass a bare `ge`."""

LARGEST = 2**63 - 1
"""The largest whole number of 64 bits, which is what libraries below take."""

PositiveInt = Annotated[int, Meta(ge=1, le=LARGEST)]
NonNegativeInt = Annotated[int, Meta(ge=0, le=LARGEST)]
PositiveFloat = Annotated[float, Meta(gt=0, le=FINITE)]
NonNegativeFloat = Annotated[float, Meta(ge=0, le=FINITE)]
Fraction = Annotated[float, Meta(ge=0, le=1)]


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class _ParamsMeta(msgspec.StructMeta):
    """Make every subclass keyword-only: msgspec does not inherit that setting."""

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **settings: Any) -> type:
        settings.setdefault("kw_only", True)
        return super().__new__(mcs, name, bases, namespace, **settings)


class Params(msgspec.Struct, metaclass=_ParamsMeta, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of every configuration struct, the kernel's and a plugin's: frozen, closed, keyword-only.

    A struct does nothing: it reads no file, network or environment. Give each field a type, a default, a range
    (`Annotated[float, Meta(ge=0)]`) and a docstring below it; `oumi plugins show`, `oumi config explain` and the JSON
    schema print them. A rule about several fields is a `check` method.
    """

    def check(self) -> Iterator[tuple[str, str]]:
        """Yield (field path relative to this struct, message) for each broken rule about several fields."""
        yield from ()


class ConfigEnum(Enum):
    """An enum whose members are found by name or value, in any case, with `-` read as `_`.

    A class attribute `__aliases__ = {"other_spelling": "MEMBER"}` (lower case) adds spellings.
    """

    @classmethod
    def _missing_(cls, value: object) -> ConfigEnum | None:
        key = str(value).strip().lower().replace("-", "_")
        for member in cls:
            if key in (member.name.lower(), str(member.value).lower()):
                return member
        alias = getattr(cls, "__aliases__", {}).get(key)
        return cls[alias] if alias else None


@functools.cache
def field_docs(struct: type) -> dict[str, str]:
    """Return the docstring below each field of `struct`, its bases' fields included; read from source, on demand."""
    docs: dict[str, str] = {}
    for cls in reversed(struct.__mro__):
        if issubclass(cls, msgspec.Struct) and cls.__struct_fields__:
            docs.update(_own_field_docs(cls) or _described_fields(cls))
    return docs


def _described_fields(cls: type) -> dict[str, str]:
    """Return the descriptions in the types of a struct that was made without source."""
    docs: dict[str, str] = {}
    for field in msgspec.structs.fields(cls):
        kind = msgspec.inspect.type_info(field.type)
        extra = kind.extra_json_schema if isinstance(kind, msgspec.inspect.Metadata) else None
        if extra and "description" in extra:
            docs[field.name] = extra["description"]
    return docs


def _own_field_docs(cls: type) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # made by defstruct, or no source on disk: there is nothing to read
        return {}
    node = ast.parse(source).body[0]
    if not isinstance(node, ast.ClassDef):
        return {}
    docs: dict[str, str] = {}
    for field, below in zip(node.body, node.body[1:], strict=False):
        is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
            docs[field.target.id] = inspect.cleandoc(str(below.value.value))  # pyright: ignore
    return docs


def dump(value: object) -> Any:
    """Return `value` as plain dicts, lists and scalars, defaults included; enums become their names in lower case."""
    if isinstance(value, msgspec.Struct):
        return {name: dump(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, dict):
        return {key: dump(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [dump(item) for item in value]
    return value
