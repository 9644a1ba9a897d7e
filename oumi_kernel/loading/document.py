"""A configuration as data that remembers where each value was written: in the file, by a flag, under another name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from oumi_kernel.errors import Place
from oumi_kernel.loading.yaml_reader import SHOWN, Node, lines_of

_PART = re.compile(r"""\.?([^.\[\]"]+)|\[(\d+)\]|\[("(?:[^"\\]|\\.)*")\]""")
_NAME = re.compile(r"""[^.\[\]"\s\x00-\x1f\x7f-\x9f]+\Z""")
Parts = tuple[str | int, ...]
COMMAND_LINE = "command line"


class Origin(msgspec.Struct, frozen=True):
    """Where a value comes from.

    Attributes:
        kind: The file, a flag, another name of the key, or the default.
        place: Where it was written; None for a default.
        note: For an alias: the name under which it was written.
    """

    kind: Literal["file", "override", "alias", "default"]
    place: Place | None = None
    note: str = ""


def parse_path(path: str) -> Parts:
    """Return the parts of a key: `data.train.datasets[0].split` -> ('data', 'train', 'datasets', 0, 'split')."""
    return tuple(
        int(index) if index else msgspec.json.decode(quoted) if quoted else name
        for name, index, quoted in _PART.findall(path)
    )


def child(path: str, part: str | int) -> str:
    """Return the key of an item of `path`; a name that holds a dot, bracket or space is quoted: `a["b.c"]`."""
    if isinstance(part, int):
        return f"{path}[{part}]"
    if not _NAME.match(part):
        return f"{path}[{msgspec.json.encode(part).decode()}]"
    return f"{path}.{part}" if path else part


def format_path(parts: Parts) -> str:
    """Return the key that has these parts."""
    path = ""
    for part in parts:
        path = child(path, part)
    return path


class Document:
    """The raw tree of a configuration and the origin of its values."""

    def __init__(self, root: Node, text: str, source: str) -> None:
        """Take what the reader found."""
        self.data: Any = root.value
        self.source, self._lines = source, lines_of(text)
        self._places: dict[Parts, tuple[int, int]] = {}
        self._keys: dict[Parts, tuple[int, int]] = {}
        self._texts: dict[Parts, str] = {}
        self._flags: dict[Parts, str] = {}
        self._typed: dict[Parts, str] = {}
        self._notes: dict[Parts, str] = {}
        self.environment: dict[str, str] = {}
        """Key -> the `${env:...}` expression that its value came from."""
        self._index(root, ())

    def place(self, path: str) -> Place:
        """Return where the value of a key was written; else where its nearest parent was, at last the file."""
        parts = parse_path(path)
        if flag := self._flag(parts):
            return Place(COMMAND_LINE, text=flag)
        while parts:
            if parts in self._places:
                return self._at(*self._places[parts])
            parts = parts[:-1]
        return Place(self.source)

    def key_place(self, path: str) -> Place:
        """Return where the key itself was written."""
        parts = parse_path(path)
        if parts in self._keys and not self._flag(parts):
            return self._at(*self._keys[parts])
        return self.place(path)

    def origin(self, path: str) -> Origin:
        """Return where the value of a key comes from."""
        parts = parse_path(path)
        if not self.given(path):
            return Origin("default")
        if note := self._notes.get(parts):
            return Origin("alias", self.place(path), note)
        if self._flag(parts):
            return Origin("override", self.place(path))
        return Origin("file", self.place(path))

    def given(self, path: str) -> bool:
        """Return whether the user wrote this key; an empty section counts as not written."""
        found, value = self.get(path)
        return found and value != {}

    def text_at(self, path: str) -> str | None:
        """Return the scalar at a key as it was written; None for a collection."""
        return self._texts.get(parse_path(path))

    def typed_at(self, path: str) -> str | None:
        """Return what was typed for exactly this key on the command line, whatever it was read as."""
        return self._typed.get(parse_path(path))

    def get(self, path: str) -> tuple[bool, Any]:
        """Return (is it there, value)."""
        value: Any = self.data
        for part in parse_path(path):
            if not _holds(value, part):
                return False, None
            value = value[part]
        return True, value

    def put(self, path: str, value: Any, text: str) -> None:
        """Replace a scalar that is there by what it stands for, and by how that is written."""
        parts = parse_path(path)
        self._parent(parts)[parts[-1]] = value
        self._texts[parts] = text

    def put_flag(self, path: str, node: Node, *, flag: str, typed: str | None) -> None:
        """Set a key to what a flag says, making the mappings above it.

        Raises:
            KeyError: Something above it is no mapping, or has no such index.
        """
        parts = parse_path(path)
        self._parent(parts)[parts[-1]] = node.value
        for table in self._tables():
            for key in [key for key in table if key[: len(parts)] == parts]:
                del table[key]
        self._flags[parts] = flag
        if typed is not None:
            self._typed[parts] = typed
        self._index_texts(node, parts)

    def remove(self, path: str) -> None:
        """Take a key out of the data; its place is remembered for messages."""
        parts = parse_path(path)
        del self._parent(parts)[parts[-1]]
        self.environment.pop(path, None)

    def move(self, old: str, meant: Mapping[str, Any]) -> None:
        """Set the keys of `meant` as if they were written where `old` is, and take `old` out.

        Raises:
            KeyError: A section that one of them is in is no mapping; nothing has changed then.
        """
        source, (_, written) = parse_path(old), self.get(old)
        targets = {key: parse_path(key) for key in meant}
        parents = {key: self._parent(parts) for key, parts in targets.items()}
        for key, target in targets.items():
            for table in self._tables():
                below = [parts for parts in table if parts[: len(source)] == source]
                table.update({target + parts[len(source) :]: table[parts] for parts in below})
            self._notes[target] = old
            if old in self.environment and meant[key] is written:
                self.environment[key] = self.environment[old]
            parents[key][target[-1]] = meant[key]
        self.remove(old)

    def _tables(self) -> tuple[dict[Parts, Any], ...]:
        return self._places, self._keys, self._texts, self._flags, self._typed, self._notes

    def _index(self, node: Node, parts: Parts) -> None:
        self._places[parts] = (node.line, node.column)
        if node.text is not None:
            self._texts[parts] = node.text
        for key, position in node.keys.items():
            self._keys[(*parts, key)] = position
        for key, item in node.items.items():
            self._index(item, (*parts, key))

    def _index_texts(self, node: Node, parts: Parts) -> None:
        if node.text is not None:
            self._texts[parts] = node.text
        for key, item in node.items.items():
            self._index_texts(item, (*parts, key))

    def _at(self, line: int, column: int) -> Place:
        return Place(self.source, line, column, self._lines[line - 1][:SHOWN])

    def _flag(self, parts: Parts) -> str:
        while parts:
            if parts in self._flags:
                return self._flags[parts]
            parts = parts[:-1]
        return ""

    def _parent(self, parts: Parts) -> Any:
        """Return the collection that holds the last part, with mappings made where a section is missing."""
        value = self.data
        for depth, part in enumerate(parts[:-1]):
            if isinstance(part, str) and isinstance(value, dict) and value.get(part) is None:
                value[part] = {}
            if not _holds(value, part):
                raise KeyError(format_path(parts[: depth + 1]))
            value = value[part]
        last = parts[-1]
        fits = isinstance(value, dict) if isinstance(last, str) else _holds(value, last)
        if not fits:
            raise KeyError(format_path(parts))
        return value


def _holds(value: Any, part: str | int) -> bool:
    if isinstance(part, str):
        return isinstance(value, dict) and part in value
    return isinstance(value, list) and part < len(value)
