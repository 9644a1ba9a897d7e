"""Where the assistant's turns of a conversation stand in its text, and what the template made of the other turns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from oumi_plugins.trainers._layout import Layout, Place, Reading
from oumi_plugins.trainers._stand_ins import CALLS, MARK, REASONING, REASONING_KEYS, end_of, meaning, stand_in
from oumi_plugins.trainers._template import REFUSALS, Template

FEW = 3
"""From how many turns on it is worth while to look for all of them together."""


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
        parts = self._layout.parts if self._layout else ()
        self._at: dict[int, list[int]] = {}
        for index, part in enumerate(parts):
            self._at.setdefault(part.turn, []).append(index)
        self._together: dict[int, Place] | None = None

    def find(self, turn: int) -> Turn:
        """Return where an assistant's turn stands.

        Raises:
            Lost: It cannot be told, or not all of the turn is there, or it is there twice.
        """
        layout, reading = self._layout, self._reading
        if layout is None or reading is None:
            raise Lost(turn, "the chat template refuses the conversation when other words stand in it")
        indices = self._at.get(turn, ())
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
        if self._together is None and turn not in reading.places:
            self._together = self._all_replaced(layout, reading)
        place = reading.places.get(turn) or (self._together or {}).get(turn) or self._replaced(layout, index)
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

    def _all_replaced(self, layout: Layout, reading: Reading) -> dict[int, Place]:
        """Find the turns that were not read by what is the same when other words stand in their places.

        Other words in all of them show what stands between any two. Other words in every second one show what each of
        the rest has between that; so three renderings do, however many turns there are. Returns nothing if they do not
        account for every character: then each turn is looked for alone.
        """
        roles = [self._messages[part.turn]["role"] for part in layout.parts]
        lost = [
            index
            for index, (part, role) in enumerate(zip(layout.parts, roles, strict=True))
            if role == "assistant" and part.turn not in reading.places and len(self._at[part.turn]) == 1
        ]
        turns = [layout.parts[index].turn for index in lost]
        if len(lost) < FEW or MARK.search(self._text):
            return {}
        between, *halves = (self._between(chosen) for chosen in (turns, turns[::2], turns[1::2]))
        if not between or not all(halves):
            return {}
        places, position = dict[int, Place](), len(between[0])
        for number, index in enumerate(lost):
            part, (before, behind) = layout.parts[index], between[number : number + 2]
            around = halves[(number + 1) % 2][(number + 1) // 2]
            words = len(around) - len(before) - len(behind)
            as_elsewhere = before.endswith(part.before) and behind.startswith(layout.after(index))
            if not as_elsewhere or words < 0 or not around.startswith(before) or not around.endswith(behind):
                return {}
            if not self._text.startswith(around, position - len(before)):
                return {}
            floor = position - len(part.before)
            places[part.turn] = Place(floor, floor + part.header, position + words)
            position += words + len(behind)
        return places if position == len(self._text) else {}

    def _between(self, turns: Sequence[int]) -> list[str]:
        """Return what stands before, between and behind some turns; nothing if each is not once and in order there."""
        others = list(self._messages)
        for turn in turns:
            others[turn] = stand_in(others[turn], turn)
        try:
            text = self._template.render(others, self._tools)
        except REFUSALS:
            return []
        found, order, position = list[str](), list[int](), 0
        for mark in MARK.finditer(text):
            turn = meaning(mark)[0]
            if not order or order[-1] != turn:
                order.append(turn)
                found.append(text[position : mark.start()])
            position = end_of(mark)
        return [*found, text[position:]] if order == list(turns) else []

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
