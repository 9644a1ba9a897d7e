"""A conversation as a chat template sees it: which kind it is, whole or only its opening and what was said last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from oumi_plugins.trainers._stand_ins import is_blank, stand_in

OPENING = ("system", "developer")
"""Who speaks before the first user does."""


class Talk:
    """A conversation of which parts are rendered."""

    def __init__(self, messages: Sequence[Mapping[str, Any]], tools: Any, text: str) -> None:
        """Take what is said, the tools, and the text that the template makes of it, which may show the calls' ids."""
        self.messages, self.tools = messages, tools
        first = next((one for message in messages for one in _ids(message)), None)
        self._shows_ids = first is not None and str(first) in text

    def near(self, turn: int) -> list[int]:
        """Return the turns of the opening, the first user's included, and those from the last assistant's turn on.

        Empty where these are all the turns before `turn`.
        """
        first = 0
        while first < turn and self.messages[first]["role"] in OPENING:
            first += 1
        last = turn - 1
        while last > first and self.messages[last]["role"] != "assistant":
            last -= 1
        return [*range(first + 1), *range(last, turn)] if last > first + 1 else []

    def answered(self, turn: int) -> list[int]:
        """Return an assistant's turn and those that others answer it with: the last turn of all may look different."""
        stop = turn + 1
        while stop < len(self.messages) and self.messages[stop]["role"] != "assistant":
            stop += 1
        return [*range(turn, stop)]

    def stand_ins(self, turns: Sequence[int]) -> list[dict[str, Any]]:
        """Return some turns as if they were the whole conversation, with marks for their texts."""
        return [stand_in(self.messages[turn], place) for place, turn in enumerate(turns)]

    def kinds(self, turns: Sequence[int]) -> tuple[Any, ...]:
        """Return what a template may tell from some turns besides their text, and ids of calls that it does not show.

        Of those, only which answer belongs to which call is told.
        """
        numbers: dict[Any, int] = {}
        messages = (self.messages[turn] for turn in turns)
        if not self._shows_ids:
            messages = (_numbered(message, numbers) for message in messages)
        return tuple(kind(message, place) for place, message in enumerate(messages))


def kind(message: Mapping[str, Any], turn: int) -> Any:
    """Return what a template may tell from a message besides its text."""
    content = message.get("content")
    if len(message) == 2 and isinstance(content, str):
        role = message["role"]
        return role if role == "assistant" or not is_blank(content) else (role, content)
    return repr(stand_in(message, turn))


def _ids(message: Mapping[str, Any]) -> list[Any]:
    found = [message.get("tool_call_id"), *(call.get("id") for call in message.get("tool_calls") or ())]
    return [one for one in found if one is not None]


def _numbered(message: Mapping[str, Any], numbers: dict[Any, int]) -> Mapping[str, Any]:
    """Return a message with numbers for the ids of its calls, the same for the same id."""
    if not _ids(message):
        return message
    changed = dict(message)
    if changed.get("tool_call_id") is not None:
        changed["tool_call_id"] = numbers.setdefault(str(changed["tool_call_id"]), len(numbers))
    if changed.get("tool_calls"):
        changed["tool_calls"] = [
            call if call.get("id") is None else {**call, "id": numbers.setdefault(str(call["id"]), len(numbers))}
            for call in changed["tool_calls"]
        ]
    return changed
