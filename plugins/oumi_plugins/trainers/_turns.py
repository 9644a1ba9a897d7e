"""Where the assistant's turns of a conversation stand in its text, and what the template made of the other turns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from oumi_plugins.trainers._layout import Layout, Place
from oumi_plugins.trainers._stand_ins import CALLS, MARK, REASONING, REASONING_KEYS, end_of, meaning, stand_in
from oumi_plugins.trainers._template import REFUSALS, Template


class Turn(NamedTuple):
    """An assistant's turn in a text, in characters."""

    turn: int
    floor: int
    """Where the text of the turn before it ends."""
    start: int
    """Where it begins, behind its header."""
    end: int
    """Where its own text ends."""
    stop: int
    """Where what ends the turn ends; `end` where nothing does."""
    ceiling: int
    """Where the text of the turn after it begins; the end of the whole text where there is none."""
    final: bool
    """Whether no other turn follows."""


class Lost(Exception):
    """A turn of which the template does not show where it stands."""

    def __init__(self, turn: int, reason: str) -> None:
        super().__init__(reason)
        self.turn = turn


class Turns:
    """What a template made of one conversation."""

    def __init__(self, template: Template, text: str, messages: Sequence[Mapping[str, Any]], tools: Any) -> None:
        self._template, self._text, self._messages, self._tools = template, text, messages, tools
        self._layout = template.layout(messages, tools)
        self._reading = self._layout.read(text, messages) if self._layout else None

    def find(self, turn: int) -> Turn:
        """Return where an assistant's turn stands.

        Raises:
            Lost: It cannot be told, or not all of the turn is there, or it is there twice.
        """
        layout, reading = self._layout, self._reading
        if layout is None or reading is None:
            raise Lost(turn, "the chat template refuses the conversation when other words stand in it")
        indices = [index for index, part in enumerate(layout.parts) if part.turn == turn]
        if any(missing == turn and which >= CALLS for missing, which in layout.missing):
            raise Lost(turn, "the chat template leaves out tool calls of the assistant's turn")
        if not indices:
            raise Lost(turn, "the chat template leaves the assistant's turn out")
        index = indices[0]
        part = layout.parts[index]
        if len(indices) > 1 or any(part.texts.count(which) > 1 for which in part.texts if which < CALLS):
            raise Lost(turn, "the chat template writes the assistant's turn in more than one place")
        if part.texts[-1] >= CALLS and not part.closing:
            raise Lost(turn, "the chat template does not show where the assistant's tool calls end")
        place = reading.places.get(turn) or self._replaced(layout, index)
        floor, start, end = place
        after = layout.after(index)
        final = index + 1 == len(layout.parts)
        ceiling = len(self._text) if final else end + len(after)
        return Turn(turn, floor, start, end, end + part.closing, ceiling, final)

    def altered(self) -> list[tuple[int, str]]:
        """Return (turn, what became of it) of the turns whose text is not all there."""
        missing = self._layout.missing if self._layout else ()
        found = [(turn, f"leaves out the {_named(which)}") for turn, which in missing]
        gone = {turn for turn, _ in found}
        unread = [part.turn for part in self._reading.unread] if self._reading else range(len(self._messages))
        whole = _bare(self._text) if unread else ""
        for turn in unread:
            message = self._messages[turn]
            said = [message.get("content"), *(message.get(key) for key in REASONING_KEYS)]
            if turn not in gone and not all(_is_in(text, whole) for text in said if isinstance(text, str)):
                found.append((turn, "leaves out or changes part of the text"))
        return found

    def _replaced(self, layout: Layout, index: int) -> Place:
        """Find a turn by what is the same when other words stand in its place."""
        part = layout.parts[index]
        others = list(self._messages)
        others[part.turn] = stand_in(others[part.turn], part.turn)
        try:
            text = self._template.render(others, self._tools)
        except REFUSALS as error:
            raise Lost(part.turn, f"the chat template refuses other words in the assistant's turn ({error})") from error
        marks = [found for found in MARK.finditer(text) if meaning(found)[0] == part.turn]
        if any(found[0] in self._text for found in marks):
            raise Lost(part.turn, "the conversation holds the private-use characters with which turns are looked for")
        if marks:
            floor, behind = marks[0].start() - len(part.before), end_of(marks[-1])
            start, tail = floor + part.header, text[behind:]
            end = len(self._text) - len(tail)
            as_elsewhere = text.startswith(part.before, floor) and text.startswith(layout.after(index), behind)
            if as_elsewhere and start <= end and self._text.startswith(text[:start]) and self._text.endswith(tail):
                return Place(floor, start, end)
        reason = "what the chat template writes around the assistant's turn changes with the turn's words"
        raise Lost(part.turn, reason)


def _named(which: int) -> str:
    if which >= CALLS:
        return "tool calls"
    return "reasoning" if which == REASONING else "text"


def _bare(text: str) -> str:
    return "".join(text.split())


def _is_in(text: str, whole: str) -> bool:
    return _bare(text) in whole or _bare(json.dumps(text, ensure_ascii=False)[1:-1]) in whole
