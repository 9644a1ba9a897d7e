"""A configuration as data that remembers where each value was written: in the file, by a flag, under another name."""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from oumi_kernel.errors import Place
from oumi_kernel.loading.yaml_reader import Node, line_of

_PART = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")
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


def parse_path(path: str) -> tuple[str | int, ...]:
    """Return the parts of a key: `data.train.datasets[0].split` -> ('data', 'train', 'datasets', 0, 'split')."""
    return tuple(int(index) if index else name for name, index in _PART.findall(path))


def format_path(parts: tuple[str | int, ...]) -> str:
    """Return the key that has these parts."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".")


class Document:
    """The raw tree of a configuration and the origin of its values."""

    def __init__(self, root: Node, text: str, source: str) -> None:
        """Take what the reader found."""
        self.data: Any = root.value
        self.source, self._text = source, text
        self._places: dict[tuple[str | int, ...], tuple[int, int]] = {}
        self._keys: dict[tuple[str | int, ...], tuple[int, int]] = {}
        self._texts: dict[tuple[str | int, ...], str] = {}
        self._flags: dict[tuple[str | int, ...], str] = {}
        self._notes: dict[tuple[str | int, ...], str] = {}
        self.environment: dict[str, str] = {}
        """Key -> the `${env:...}` expression that its value came from."""
        self._index(root, ())

    def place(self, path: str) -> Place | None:
        """Return where the value of a key was written; else where its nearest parent was; None for nothing."""
        parts = parse_path(path)
        if flag := self._flag(parts):
            return Place(COMMAND_LINE, text=flag)
        while parts:
            if parts in self._places:
                return self._at(*self._places[parts])
            parts = parts[:-1]
        return None

    def key_place(self, path: str) -> Place | None:
        """Return where the key itself was written."""
        parts = parse_path(path)
        if flag := self._flag(parts):
            return Place(COMMAND_LINE, text=flag)
        return self._at(*self._keys[parts]) if parts in self._keys else self.place(path)

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
        found, value = self._find(parse_path(path))
        return found and value not in ({}, None) if isinstance(value, dict) or value is None else found

    def text_at(self, path: str) -> str | None:
        """Return the scalar at a key as it was written."""
        return self._texts.get(parse_path(path))

    def get(self, path: str) -> tuple[bool, Any]:
        """Return (is it there, value)."""
        return self._find(parse_path(path))

    def put(self, path: str, value: Any, *, flag: str = "", text: str | None = None) -> None:
        """Set a value, making the mappings above it; a flag is where it comes from.

        Raises:
            KeyError: Something above it is no mapping, or has no such index.
        """
        parts = parse_path(path)
        self._parent(parts, create=True)[parts[-1]] = value
        if flag:
            self._forget(parts)
            self._flags[parts] = flag
        if text is not None:
            self._texts[parts] = text

    def remove(self, path: str) -> None:
        """Take a key out of the data; its place is remembered for messages."""
        parts = parse_path(path)
        del self._parent(parts, create=False)[parts[-1]]

    def move(self, old: str, new: str, value: Any) -> None:
        """Set `new` to `value` as if it were written where `old` is, and take `old` out."""
        source, target = parse_path(old), parse_path(new)
        tables: tuple[dict[tuple[str | int, ...], Any], ...] = (self._places, self._keys, self._texts, self._flags)
        for table in tables:
            if source in table:
                table[target] = table[source]
        self._notes[target] = old
        self.remove(old)
        self._parent(target, create=True)[target[-1]] = value

    def _index(self, node: Node, parts: tuple[str | int, ...]) -> None:
        self._places[parts] = (node.line, node.column)
        if node.text is not None:
            self._texts[parts] = node.text
        for key, position in node.keys.items():
            self._keys[(*parts, key)] = position
        for key, child in node.items.items():
            self._index(child, (*parts, key))

    def _at(self, line: int, column: int) -> Place:
        return Place(self.source, line, column, line_of(self._text, line))

    def _flag(self, parts: tuple[str | int, ...]) -> str:
        while parts:
            if parts in self._flags:
                return self._flags[parts]
            parts = parts[:-1]
        return ""

    def _forget(self, parts: tuple[str | int, ...]) -> None:
        for table in (self._places, self._keys, self._texts, self._flags, self._notes):
            for key in [key for key in table if key[: len(parts)] == parts]:
                del table[key]

    def _find(self, parts: tuple[str | int, ...]) -> tuple[bool, Any]:
        value: Any = self.data
        for part in parts:
            if not _holds(value, part):
                return False, None
            value = value[part]
        return True, value

    def _parent(self, parts: tuple[str | int, ...], *, create: bool) -> Any:
        value = self.data
        for depth, part in enumerate(parts[:-1]):
            missing = isinstance(value, dict) and value.get(str(part)) is None
            if missing and create and isinstance(part, str):
                value[part] = {}
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                raise KeyError(format_path(parts[: depth + 1])) from None
        last = parts[-1]
        fits = isinstance(value, dict) if isinstance(last, str) else isinstance(value, list) and last < len(value)
        if not fits:
            raise KeyError(format_path(parts))
        return value


def _holds(value: Any, part: str | int) -> bool:
    if isinstance(part, str):
        return isinstance(value, dict) and part in value
    return isinstance(value, list) and part < len(value)
