"""The keys of a configuration as its structs type them: for explanations, the schema and completion."""

from __future__ import annotations

import functools
import re
from typing import Any

import msgspec
from msgspec import inspect

from oumi_kernel.config import TrainingConfig
from oumi_kernel.schema import dump, field_docs

REQUIRED = msgspec.NODEFAULT
"""The default of a key that must be given."""

_INDEX = re.compile(r"\[\d*\]|\.\d+(?=\.|\[|$)")


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """One key.

    Attributes:
        path: Where it stands; `[]` for any item of a list: `data.train.datasets[].split`.
        type: What it takes, as msgspec describes it.
        default: Its default; `REQUIRED` where there is none.
        doc: What it does; may be empty.
        struct: The struct of the section that it holds (or of each item of its list); None for a value.
        repeated: Whether it holds a list of such sections.
    """

    path: str
    type: inspect.Type
    default: Any
    doc: str
    struct: type[msgspec.Struct] | None = None
    repeated: bool = False

    @property
    def name(self) -> str:
        """The last word of the path."""
        return self.path.rpartition(".")[2]


class NamingKey(msgspec.Struct, frozen=True):
    """A key that names a component.

    Attributes:
        path: The key.
        family: Whose component it names.
        kwargs: The key that holds the parameters of that component; empty where its section does.
    """

    path: str
    family: str
    kwargs: str = ""


NAMING_KEYS = (
    NamingKey("training.trainer_type", "trainers", "training.trainer_kwargs"),
    NamingKey("training.optimizer", "optimizers", "training.optimizer_kwargs"),
    NamingKey("training.lr_scheduler_type", "schedulers", "training.lr_scheduler_kwargs"),
    NamingKey("training.metrics_function", "metrics", "training.metrics_kwargs"),
    NamingKey("peft.peft_method", "peft"),
    *(
        NamingKey(f"data.{split}.datasets[].dataset_name", "datasets", f"data.{split}.datasets[].dataset_kwargs")
        for split in ("train", "validation", "test")
    ),
    *(
        NamingKey(f"data.{split}.collator_name", "collators", f"data.{split}.collator_kwargs")
        for split in ("train", "validation", "test")
    ),
)
"""The keys with an open set of names: the installed components."""


def pattern_of(path: str) -> str:
    """Return a path with every index as `[]`: `a[0].b` and `a.0.b` become `a[].b`."""
    return _INDEX.sub("[]", path)


def keys_of(struct: type[msgspec.Struct], prefix: str = "") -> tuple[Key, ...]:
    """Return the keys directly in a section, in the order in which they are declared."""
    docs = field_docs(struct)
    return tuple(
        _key(f"{prefix}.{field.name}" if prefix else field.name, field, docs.get(field.name, ""))
        for field in msgspec.structs.fields(struct)
    )


@functools.cache
def all_keys(struct: type[msgspec.Struct] = TrainingConfig, prefix: str = "") -> dict[str, Key]:
    """Return path -> key for every key of the configuration, sections before what is in them."""
    found: dict[str, Key] = {}
    for key in keys_of(struct, prefix):
        found[key.path] = key
        if key.struct is not None:
            found.update(all_keys(key.struct, key.path + "[]" * key.repeated))
    return found


def struct_of(kind: inspect.Type) -> tuple[type[msgspec.Struct] | None, bool]:
    """Return the struct that a type holds and whether it is a list of them; unions and null are seen through."""
    kind = _bare(kind)
    if isinstance(kind, inspect.StructType):
        return kind.cls, False
    if isinstance(kind, inspect.ListType):
        return struct_of(kind.item_type)[0], True
    for member in kind.types if isinstance(kind, inspect.UnionType) else ():
        if struct_of(member)[0] is not None:
            return struct_of(member)
    return None, False


def choices(kind: inspect.Type) -> tuple[str, ...]:
    """Return the closed set of values that a type takes, as a configuration writes them; empty for an open one."""
    kind = _bare(kind)
    if isinstance(kind, inspect.UnionType):
        return tuple(choice for member in kind.types for choice in choices(member))
    if isinstance(kind, inspect.EnumType):
        return tuple(dump(member) for member in kind.cls)
    if isinstance(kind, inspect.LiteralType):
        return tuple(str(value) for value in kind.values)
    return ("true", "false") if isinstance(kind, inspect.BoolType) else ()


def describe(kind: inspect.Type) -> str:
    """Return a type in words: `whole number >= 1, or auto, or null`."""
    if isinstance(kind, inspect.Metadata):
        examples: list[Any] = (kind.extra_json_schema or {}).get("examples", [])
        return describe(kind.type) + (f" such as {', '.join(map(str, examples))}" if examples else "")
    if isinstance(kind, inspect.UnionType):
        members = [describe(member) for member in kind.types if not isinstance(member, inspect.NoneType)]
        return ", or ".join(members + ["null"] * kind.includes_none)
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        return ("whole number" if isinstance(kind, inspect.IntType) else "number") + _range(kind)
    if isinstance(kind, inspect.ListType):
        return f"list of {describe(kind.item_type)}"
    words = choices(kind)
    if len(words) == 1:
        return words[0]
    if words:
        return "true or false" if isinstance(kind, inspect.BoolType) else f"one of {', '.join(words)}"
    return _PLAIN.get(type(kind), "anything")


def write(value: Any) -> str:
    """Return a value as a configuration writes it, on one line."""
    if value is REQUIRED:
        return "none: it must be given"
    plain = dump(value)
    return plain if isinstance(plain, str) and plain.isidentifier() else msgspec.json.encode(plain).decode()


_PLAIN: dict[type[inspect.Type], str] = {
    inspect.StrType: "text",
    inspect.DictType: "keys of your own, with any values",
    inspect.StructType: "section",
    inspect.NoneType: "null",
}


def _key(path: str, field: msgspec.structs.FieldInfo, doc: str) -> Key:
    kind = inspect.type_info(field.type)
    struct, repeated = struct_of(kind)
    default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    return Key(path=path, type=kind, default=default, doc=doc, struct=struct, repeated=repeated)


def _bare(kind: inspect.Type) -> inspect.Type:
    return _bare(kind.type) if isinstance(kind, inspect.Metadata) else kind


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    """Return the bounds that mean something: the largest finite number is no bound to a reader."""
    signs = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
    bounds = [(sign, getattr(kind, name)) for name, sign in signs if getattr(kind, name) is not None]
    return "".join(f" {sign} {bound:g}" for sign, bound in bounds if abs(bound) < 1e300)
