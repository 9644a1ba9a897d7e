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
        type: What it takes, as annotated.
        default: Its default; `REQUIRED` where there is none.
        doc: What it does; may be empty.
        struct: The struct of the section that it holds (or of each item of its list); None for a value.
        repeated: Whether it holds a list of such sections.
    """

    path: str
    type: Any
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
    NamingKey("peft.peft_method", "peft", "peft.peft_kwargs"),
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


def write(value: Any) -> str:
    """Return a value as a configuration writes it, on one line."""
    if value is REQUIRED:
        return "none: it must be given"
    plain = dump(value)
    if isinstance(plain, float) or (isinstance(plain, str) and plain.isidentifier()):
        return str(plain)
    return msgspec.json.encode(plain).decode()


def _key(path: str, field: msgspec.structs.FieldInfo, doc: str) -> Key:
    struct, repeated = struct_of(inspect.type_info(field.type))
    default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    return Key(path=path, type=field.type, default=default, doc=doc, struct=struct, repeated=repeated)


def _bare(kind: inspect.Type) -> inspect.Type:
    return _bare(kind.type) if isinstance(kind, inspect.Metadata) else kind
