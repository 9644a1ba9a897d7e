"""Where the turns of one kind of conversation stand in the text that a chat template makes of it.

A conversation whose texts are all marks is rendered once for each kind of conversation (who speaks in which order).
What lies between the marks is the template's own text. The text of a real conversation is then read as that text with
the turns' texts in between, from the front and from the back; where the two readings meet, they account for every
character, so there is nothing left to guess.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from oumi_plugins.trainers._stand_ins import CONTENT, MARK, end_of, meaning


class Place(NamedTuple):
    """Where a turn stands in a text, in characters."""

    floor: int
    """Where the text of the turn before it ends."""
    start: int
    """Where the turn begins; for an assistant, behind the header that a generation prompt would write."""
    end: int
    """Where its own text ends."""


@dataclass
class Part:
    """A turn in the text of the template."""

    turn: int
    before: str
    """The template's text in front of it."""
    texts: list[int]
    """Which of its texts are written, in order."""
    header: int
    """How much of `before` is not the turn's own: for an assistant, its header, else all of it."""
    closing: int = 0
    """How much of the template's text behind it ends an assistant's turn."""

    @property
    def head(self) -> str:
        """The part of `before` that is not the turn's own."""
        return self.before[: self.header]


@dataclass
class Reading:
    """What two readings of a text found."""

    places: dict[int, Place] = field(default_factory=dict[int, Place])
    """Turn -> where it stands."""
    unread: Sequence[Part] = ()
    """The turns between the two readings, which the template writes in another way than others of their kind."""


@dataclass
class Layout:
    """The turns of one kind of conversation in the order of the template's text, and what follows the last."""

    parts: list[Part]
    tail: str
    missing: Sequence[tuple[int, int]] = ()
    """(turn, which) of the texts that are left out."""

    def after(self, index: int) -> str:
        """Return the template's text between one turn's text and that of the next."""
        return self.parts[index + 1].before if index + 1 < len(self.parts) else self.tail

    def read(self, text: str, messages: Sequence[Mapping[str, Any]]) -> Reading:
        """Find the turns of a conversation in its text."""
        found = Reading()
        first, position = self._forwards(text, messages, found.places)
        if first == len(self.parts):
            return found
        last, stop = self._backwards(text, messages, found.places, first, position)
        found.unread = self.parts[first : last + 1]
        if first == last and stop is not None:
            part = self.parts[first]
            start = position + part.header
            if start <= stop and text.startswith(part.head, position):
                found.places[part.turn] = Place(position, start, stop)
        return found

    def _forwards(self, text: str, messages: Sequence[Any], places: dict[int, Place]) -> tuple[int, int]:
        """Read from the front; return how many turns were read, and where the last of them ends."""
        position = 0
        for index, part in enumerate(self.parts):
            following = self.parts[index + 1].head if index + 1 < len(self.parts) else self.tail
            start = position + part.header
            if not text.startswith(part.head, position):
                return index, position
            for written in _written(part, messages):
                stop = start + len(written)
                whole = index + 1 < len(self.parts) or stop + len(following) == len(text)
                if whole and text.startswith(written, start) and text.startswith(following, stop):
                    places[part.turn] = Place(position, start, stop)
                    position = stop
                    break
            else:
                return index, position
        return len(self.parts), position

    def _backwards(
        self, text: str, messages: Sequence[Any], places: dict[int, Place], first: int, limit: int
    ) -> tuple[int, int | None]:
        """Read from the back down to the turn `first`; return the last turn not read, and where its own text ends."""
        stop, following = len(text), self.tail
        for index in range(len(self.parts) - 1, first - 1, -1):
            part = self.parts[index]
            if not text.endswith(following, limit, stop):
                return index, None
            stop -= len(following)
            if index == first:
                break
            for written in _written(part, messages):
                if text.endswith(part.head + written, limit, stop):
                    start = stop - len(written)
                    places[part.turn] = Place(start - part.header, start, stop)
                    stop, following = start, part.head
                    break
            else:
                return index, stop
        return first, stop


def parts_of(text: str) -> tuple[list[Part], str]:
    """Return the turns in the text of a conversation of marks, and the text behind the last mark."""
    parts: list[Part] = []
    position = 0
    for found in MARK.finditer(text):
        turn, which = meaning(found)
        if parts and parts[-1].turn == turn:
            parts[-1].texts.append(which)
        else:
            before = text[position : found.start()]
            parts.append(Part(turn, before, [which], len(before)))
        position = end_of(found)
    return parts, text[position:]


def _written(part: Part, messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the ways in which a turn's text may be written: as it is, without blanks around it, as JSON."""
    content = messages[part.turn].get("content") or ""
    if part.texts != [CONTENT] or not isinstance(content, str):
        return
    opening = part.before[part.header :]
    yield opening + content
    stripped = content.strip()
    if stripped != content:
        yield opening + stripped
    escaped = json.dumps(content, ensure_ascii=False)[1:-1]
    if escaped != content:
        yield opening + escaped
