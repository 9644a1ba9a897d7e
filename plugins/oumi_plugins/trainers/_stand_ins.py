"""Marks that stand in for the texts of turns, so that what a chat template writes around a turn can be read off.

A mark is two characters from the planes for private use: one says which turn, the other which text of it. No template
changes them: they have no case, are no blanks, and JSON leaves them as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

CONTENT, REASONING, CALLS = 0, 1, 2
"""Which text of a turn: its content, its reasoning, and from `CALLS` on the arguments of one tool call each."""
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
MARK = re.compile("([\U000f0000-\U000ffffd])([\U00100000-\U0010fffd])")
_TURN, _FIELD = 0xF0000, 0x100000


def mark(turn: int, field: int) -> str:
    """Return what stands for one text of one turn."""
    return chr(_TURN + turn) + chr(_FIELD + field)


def meaning(found: re.Match[str]) -> tuple[int, int]:
    """Return (turn, field) of a match of `MARK`."""
    return ord(found[1]) - _TURN, ord(found[2]) - _FIELD


def end_of(found: re.Match[str]) -> int:
    """Return where a mark ends: that of a call with the quote behind it, as arguments need not end with a text."""
    quoted = meaning(found)[1] >= CALLS and found.string[found.end() :].startswith('"')
    return found.end() + quoted


def is_blank(text: Any) -> bool:
    """Say whether there is nothing to read in a text."""
    return text is None or (isinstance(text, str) and not text.strip())


def stand_in(message: Mapping[str, Any], turn: int) -> dict[str, Any]:
    """Return a message with marks for its texts.

    Which of its texts are blank stays as it is, since templates treat a turn without content in another way; but an
    assistant's turn is marked in any case. Names of called functions stay, since templates repeat them in the answers.
    """
    result, calls = dict(message), message.get("tool_calls")
    assistant = message["role"] == "assistant"
    if not is_blank(message.get("content")) or (assistant and not calls) or message["role"] == "tool":
        result["content"] = mark(turn, CONTENT)
    if assistant:
        result |= {key: mark(turn, REASONING) for key in REASONING_KEYS if not is_blank(message.get(key))}
        if calls:
            result["tool_calls"] = [_call(call, mark(turn, CALLS + index)) for index, call in enumerate(calls)]
    return result


def fields(message: Mapping[str, Any]) -> set[int]:
    """Return which texts of a turn have a mark in its stand-in."""
    if message["role"] != "assistant":
        return set() if is_blank(message.get("content")) else {CONTENT}
    calls = message.get("tool_calls") or ()
    result = {CALLS + index for index in range(len(calls))}
    if not is_blank(message.get("content")) or not calls:
        result.add(CONTENT)
    if any(not is_blank(message.get(key)) for key in REASONING_KEYS):
        result.add(REASONING)
    return result


def _call(call: Mapping[str, Any], text: str) -> dict[str, Any]:
    function = call.get("function", call)
    arguments = text if isinstance(function.get("arguments"), str) else {text: text}
    changed = {**function, "arguments": arguments}
    return {**call, "function": changed} if "function" in call else changed
