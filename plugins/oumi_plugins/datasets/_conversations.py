"""Rows of the usual forms into conversations; every complaint names the row and the key in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from oumi_kernel import DataError

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
"""Who speaks in a ShareGPT turn -> role."""


def form_of(row: Any, place: str) -> str:
    """Return the name of the form that a row has, read off its keys.

    Raises:
        DataError: It has none of the known forms.
    """
    keys = set(_object(row, place))
    for name, (needed, _) in FORMS.items():
        if needed <= keys:
            return name
    raise DataError(
        f"{place}: a row with the keys {', '.join(sorted(map(str, keys))) or 'none'} is no conversation. Known forms: "
        f"{'; '.join(', '.join(sorted(needed)) for needed, _ in FORMS.values())}."
    )


def conversation(row: Any, form: str, place: str) -> dict[str, Any]:
    """Return a row as `{"messages": [{"role", "content", ...}]}`, with `tools` where the row has them.

    Texts are not changed. Content that is a list of text items is joined. Arguments of tool calls that are JSON in a
    string become objects, which is what chat templates write out.

    Args:
        row: The row.
        form: A name of `FORMS`.
        place: Where the row stands, for messages.

    Raises:
        DataError: The row lacks a key of its form, or a turn is malformed.
    """
    needed, read = FORMS[form]
    missing = sorted(needed - set(_object(row, place)))
    if missing:
        raise DataError(f"{place}: the key '{missing[0]}' is missing; rows of the form '{form}' have it.")
    messages = read(row, place)
    if not messages:
        raise DataError(f"{place}: the conversation has no turns.")
    result: dict[str, Any] = {"messages": messages}
    tools = _parsed(row.get("tools"), f"{place}: tools")
    if tools:
        if not isinstance(tools, list):
            raise DataError(f"{place}: tools: expected a list, got {_kind(tools)}.")
        result["tools"] = tools
    return result


def _messages(row: Mapping[str, Any], place: str) -> list[dict[str, Any]]:
    turns = _list(row["messages"], f"{place}: messages")
    return [_message(turn, f"{place}: messages[{index}]") for index, turn in enumerate(turns)]


def _conversation(row: Mapping[str, Any], place: str) -> list[dict[str, Any]]:
    inner = _object(row["conversation"], f"{place}: conversation")
    return _messages({"messages": inner.get("messages")}, f"{place}: conversation")


def _sharegpt(row: Mapping[str, Any], place: str) -> list[dict[str, Any]]:
    turns = _list(row["conversations"], f"{place}: conversations")
    messages = _system(row, place)
    for index, turn in enumerate(turns):
        here = f"{place}: conversations[{index}]"
        speaker = _object(turn, here).get("from")
        if not isinstance(speaker, str) or speaker not in SHAREGPT:
            raise DataError(f"{here}.from: {speaker!r} is not known; known: {', '.join(SHAREGPT)}.")
        messages.append({"role": SHAREGPT[speaker], "content": _text(turn.get("value"), f"{here}.value")})
    return messages


def _alpaca(row: Mapping[str, Any], place: str) -> list[dict[str, Any]]:
    if row.get("history"):
        raise DataError(f"{place}: history: earlier turns are not read from this form; write the row as messages.")
    question = _text(row["instruction"], f"{place}: instruction")
    if row.get("input"):
        question = f"{question}\n\n{_text(row['input'], f'{place}: input')}"
    return [
        *_system(row, place),
        {"role": "user", "content": question},
        {"role": "assistant", "content": _text(row["output"], f"{place}: output")},
    ]


def _prompt(answer: str) -> Callable[[Mapping[str, Any], str], list[dict[str, Any]]]:
    def read(row: Mapping[str, Any], place: str) -> list[dict[str, Any]]:
        return [
            *_system(row, place),
            *_side(row["prompt"], "user", f"{place}: prompt"),
            *_side(row[answer], "assistant", f"{place}: {answer}"),
        ]

    return read


FORMS: dict[str, tuple[set[str], Callable[[Mapping[str, Any], str], list[dict[str, Any]]]]] = {
    "messages": ({"messages"}, _messages),
    "conversation": ({"conversation"}, _conversation),
    "sharegpt": ({"conversations"}, _sharegpt),
    "alpaca": ({"instruction", "output"}, _alpaca),
    "prompt_completion": ({"prompt", "completion"}, _prompt("completion")),
    "prompt_response": ({"prompt", "response"}, _prompt("response")),
}
"""Form -> the keys that a row of it has, and what reads such a row. The first that fits is taken."""


def _system(row: Mapping[str, Any], place: str) -> list[dict[str, Any]]:
    return [{"role": "system", "content": _text(row["system"], f"{place}: system")}] if row.get("system") else []


def _side(value: Any, role: str, place: str) -> list[dict[str, Any]]:
    """Return one side of a prompt and its answer, which is a text or a list of turns."""
    if isinstance(value, list):
        return [_message(turn, f"{place}[{index}]") for index, turn in enumerate(value)]
    return [{"role": role, "content": _text(value, place)}]


def _message(turn: Any, place: str) -> dict[str, Any]:
    """Return a turn with every key that has a value; a template may use more than role and content."""
    message = {key: value for key, value in _object(turn, place).items() if value is not None}
    _check_texts(message, place)
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        meant = f" Did you mean '{SHAREGPT[role]}'?" if isinstance(role, str) and role in SHAREGPT else ""
        raise DataError(f"{place}.role: {role!r} is no role; roles: {', '.join(ROLES)}.{meant}")
    if message.get("tool_calls"):
        calls = _list(message["tool_calls"], f"{place}.tool_calls")
        message["tool_calls"] = [_call(call, f"{place}.tool_calls[{index}]") for index, call in enumerate(calls)]
        message.setdefault("content", "")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_item(item, f"{place}.content[{index}]") for index, item in enumerate(content))
    message["content"] = _text(content, f"{place}.content")
    return message


def _check_texts(value: Any, place: str) -> None:
    """Refuse text that is none at any depth of a turn: a template may write any of it."""
    if isinstance(value, str):
        _text(value, place)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _check_texts(inner, f"{place}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_texts(inner, f"{place}[{index}]")


def _item(item: Any, place: str) -> str:
    kind = _object(item, place).get("type")
    if kind != "text":
        raise DataError(f"{place}.type: {kind!r} is not read by this dataset; it takes text alone.")
    return _text(item.get("text", item.get("content")), f"{place}.text")


def _call(call: Any, place: str) -> dict[str, Any]:
    call = dict(_object(call, place))
    function = dict(_object(call.get("function", call), f"{place}.function"))
    if not isinstance(function.get("name"), str):
        raise DataError(f"{place}: a tool call has a name, which is text; got {_kind(function.get('name'))}.")
    arguments = _parsed(function.get("arguments"), f"{place}: arguments")
    function["arguments"] = {} if arguments is None else arguments
    return call | {"function": function} if "function" in call else function


def _parsed(value: Any, place: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON: {error}.") from error


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place}: expected text, got {_kind(value)}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: half a surrogate pair at character {error.start} is no text.") from error
    return value


def _list(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{place}: expected a list, got {_kind(value)}.")
    return value


def _object(value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DataError(f"{place}: expected an object, got {_kind(value)}.")
    return value


def _kind(value: Any) -> str:
    """Return what JSON calls a value, and the value itself where it is short."""
    if value is None:
        return "null"
    names = {str: "text", bool: "a boolean", list: "a list", dict: "an object"}
    shown = repr(value)
    return f"{names.get(type(value), 'a number')}{f' ({shown})' if len(shown) < 40 else ''}"
