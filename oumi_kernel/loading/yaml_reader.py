"""YAML text -> plain data with the position of every key and value, read from libyaml's event stream.

Scalars follow the core schema of YAML 1.2, with `_` allowed inside numbers: `5e-5` is a number, `no` and `12:30` are
text. Tags, merge keys, duplicate keys and second documents are errors. Size, depth and the number of nodes (counted
after aliases are expanded) are limited while reading, so that no file can hang or crash the reader.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import yaml

from oumi_kernel.errors import ConfigError, Place, Problem

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_NODES = 100_000
SHOWN = 2000

_INT = re.compile(r"[-+]?[0-9](?:_?[0-9])*\Z")
_OCTAL_OR_HEX = re.compile(r"0(?:o[0-7]+|x[0-9a-fA-F]+)\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9](?:_?[0-9])*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_SPECIAL = re.compile(r"(?:([-+]?)\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z")
_CONSTANTS: dict[str, Any] = {"": None, "~": None, "null": None, "Null": None, "NULL": None} | {
    text: value for value in (True, False) for text in (str(value), str(value).lower(), str(value).upper())
}
_LINE_BREAK = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")
MAX_DIGITS = 300


class Node(msgspec.Struct):
    """One value with where it was written.

    Attributes:
        value: Plain data; for a collection, the same data as its items hold.
        line: Line of the value, from 1.
        column: Column of the value, from 1.
        text: The scalar as written; None for a collection.
        items: Key or index -> node, for a collection.
        keys: Key -> (line, column) of the key, for a mapping.
        size: Number of nodes in it, itself included.
        levels: How deep it is nested, 1 for a scalar.
    """

    value: Any
    line: int
    column: int
    text: str | None = None
    items: dict[Any, Node] = {}
    keys: dict[str, tuple[int, int]] = {}
    size: int = 1
    levels: int = 1


def read_yaml(text: str, source: str) -> Node:
    """Return the root of the one document in `text`.

    Raises:
        ConfigError: It is not such YAML; says where.
    """
    if len(text) > MAX_BYTES:
        raise _error(source, text, 0, 0, "limit", f"the file is larger than {MAX_BYTES >> 20} MiB.")
    return _Reader(text, source).document()


def scalar(text: str) -> Any:
    """Return what a plain scalar means."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if len(text) <= MAX_DIGITS:
        if _INT.match(text):
            return int(text)
        if _OCTAL_OR_HEX.match(text):
            return int(text, 0)
        if _FLOAT.match(text):
            return float(text)
        if special := _SPECIAL.match(text):
            return float((special[1] or "") + text.rpartition(".")[2].lower())
    return text


class _Reader:
    """Builds nodes from events, counting as it goes."""

    def __init__(self, text: str, source: str) -> None:
        self.text, self.source = text, source
        self.nodes = 0
        self.anchors: dict[str, Node] = {}
        self.events = self._parse()

    def document(self) -> Node:
        event = next(self.events)
        while isinstance(event, yaml.StreamStartEvent | yaml.DocumentStartEvent):
            event = next(self.events)
        if isinstance(event, yaml.StreamEndEvent):
            return Node(value={}, line=1, column=1)
        root = self.node(event, 1)
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                raise self.error(event, "syntax", "a second document begins here; a configuration is one document.")
        return root

    def node(self, event: Any, depth: int) -> Node:
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, depth)
        self.count(event, 1, depth)
        self.refuse_tag(event)
        if isinstance(event, yaml.ScalarEvent):
            node = self.scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self.sequence(event, depth)
        else:
            node = self.mapping(event, depth)
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def scalar(self, event: Any) -> Node:
        line, column = _position(event)
        value = event.value if event.style else scalar(event.value)  # only a plain scalar has no style
        return Node(value=value, line=line, column=column, text=event.value)

    def sequence(self, event: Any, depth: int) -> Node:
        items: dict[Any, Node] = {}
        while not isinstance(child := next(self.events), yaml.SequenceEndEvent):
            items[len(items)] = self.node(child, depth + 1)
        return _collection(event, [item.value for item in items.values()], items, {})

    def mapping(self, event: Any, depth: int) -> Node:
        items: dict[Any, Node] = {}
        keys: dict[str, tuple[int, int]] = {}
        while not isinstance(child := next(self.events), yaml.MappingEndEvent):
            key = self.key(child, keys)
            keys[key] = _position(child)
            items[key] = self.node(next(self.events), depth + 1)
        return _collection(event, {key: item.value for key, item in items.items()}, items, keys)

    def key(self, event: Any, keys: dict[str, tuple[int, int]]) -> str:
        if not isinstance(event, yaml.ScalarEvent):
            raise self.error(event, "syntax", "a key must be a plain word.")
        self.refuse_tag(event)
        key = event.value
        if key == "<<" and not event.style:
            raise self.error(event, "syntax", "merge keys are not supported; write the keys out.")
        if not event.style and not isinstance(scalar(key), str):
            raise self.error(event, "syntax", f"the key '{key[:60]}' is not text; put it in quotes if it is a name.")
        if key in keys:
            message = f"the key '{key[:60]}' is here a second time; the first is on line {keys[key][0]}."
            raise self.error(event, "duplicate-key", message)
        return key

    def alias(self, event: Any, depth: int) -> Node:
        target = self.anchors.get(event.anchor)
        if target is None:
            raise self.error(event, "syntax", f"the alias *{event.anchor} refers to nothing that is complete above it.")
        self.count(event, target.size, depth + target.levels - 1)
        return _copy(target)

    def count(self, event: Any, nodes: int, depth: int) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            raise self.error(event, "limit", f"more than {MAX_NODES:,} values, aliases expanded.")
        if depth > MAX_DEPTH:
            raise self.error(event, "limit", f"nested more than {MAX_DEPTH} levels deep.")

    def refuse_tag(self, event: Any) -> None:
        if event.tag is not None:
            raise self.error(event, "syntax", f"the tag {event.tag} is not allowed; write plain values.")

    def error(self, event: Any, code: str, message: str) -> ConfigError:
        return _error(self.source, self.text, *_position(event), code, message)

    def _parse(self) -> Iterator[Any]:
        try:
            loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(self.text)
            while (event := loader.get_event()) is not None:
                yield event
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
            message = f"not valid YAML: {error.problem or error.context}."
            if line_of(self.text, line)[column - 1 : column] == "\t":
                message = "not valid YAML: a tab; indent with spaces."
            raise _error(self.source, self.text, line, column, "syntax", message) from None
        except yaml.reader.ReaderError:
            raise self._forbidden_character() from None
        except (ValueError, RecursionError) as error:
            raise _error(self.source, self.text, 0, 0, "syntax", f"not valid YAML: {error}.") from None

    def _forbidden_character(self) -> ConfigError:
        """Return the error for the first character outside of YAML's set."""
        found = yaml.reader.Reader.NON_PRINTABLE.search(self.text)  # libyaml's position counts bytes
        before = _LINE_BREAK.split(self.text[: found.start()] if found else "")
        message = f"a character that YAML does not allow: #x{ord(found.group()) if found else 0:04x}."
        return _error(self.source, self.text, len(before), len(before[-1]) + 1, "syntax", message)


def _collection(event: Any, value: Any, items: dict[Any, Node], keys: dict[str, tuple[int, int]]) -> Node:
    line, column = _position(event)
    size = 1 + sum(item.size for item in items.values())
    levels = 1 + max((item.levels for item in items.values()), default=0)
    return Node(value=value, line=line, column=column, items=items, keys=keys, size=size, levels=levels)


def _copy(node: Node) -> Node:
    items = {key: _copy(item) for key, item in node.items.items()}
    value = node.value
    if isinstance(value, dict):
        value = {key: item.value for key, item in items.items()}
    elif isinstance(value, list):
        value = [item.value for item in items.values()]
    return msgspec.structs.replace(node, items=items, value=value)


def _position(event: Any) -> tuple[int, int]:
    return event.start_mark.line + 1, event.start_mark.column + 1


def lines_of(text: str) -> list[str]:
    """Return the lines of `text` as YAML counts them."""
    return _LINE_BREAK.split(text)


def line_of(text: str, line: int) -> str:
    """Return a line of `text` by number, from 1, without what no reader will read; empty where there is none."""
    lines = lines_of(text)
    return lines[line - 1][:SHOWN] if 0 < line <= len(lines) else ""


def _error(source: str, text: str, line: int, column: int, code: str, message: str) -> ConfigError:
    place = Place(source, line, column, line_of(text, line)) if line else Place(source)
    return ConfigError(Problem(code=code, path="", message=message, place=place))
