"""Files into rows, and rows into conversations; every complaint names file, line and turn."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from oumi_kernel import DataError

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT = {"human": "user", "gpt": "assistant", "system": "system", "tool": "tool"}
_SLICE = re.compile(r"[\w.-]+\[(-?\d+%?)?:(-?\d+%?)?\]\Z")


def read_file(path: str) -> Iterator[tuple[str, Any]]:
    """Yield (place, row) for every row of a .jsonl, .json or .parquet file.

    Raises:
        DataError: The file is missing, of another kind, empty, or a line of it is not JSON.
    """
    file = Path(path)
    readers = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}
    if not file.exists():
        raise DataError(f"there is no file '{path}'.{_nearest(file)}")
    if file.suffix not in readers or not file.is_file():
        raise DataError(f"'{path}' is no file of a kind that can be read: {', '.join(readers)}.")
    found = False
    try:
        for item in readers[file.suffix](file):
            found = True
            yield item
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}).") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not found:
        raise DataError(f"{path} holds no rows.")


def conversation(row: Any, place: str, form: str = "auto") -> dict[str, Any]:
    """Return a row as `{"messages": [...]}`, with `tools` where the row has them.

    Raises:
        DataError: The row has none of the known forms, or a turn is malformed.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"{place}: expected an object, got {type(row).__name__}.")
    found = form if form != "auto" else _form(row, place)
    if found == "messages":
        messages = _list(row, "messages", place)
    elif found == "conversation":
        messages = _list(row.get("conversation") or {}, "messages", place)
    elif found == "sharegpt":
        messages = [_from_sharegpt(turn, place, index) for index, turn in enumerate(_list(row, "conversations", place))]
    elif found == "prompt":
        messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
    else:
        messages = _alpaca(row, place)
    if not messages:
        raise DataError(f"{place}: the conversation has no turns.")
    result: dict[str, Any] = {"messages": [_message(turn, place, index) for index, turn in enumerate(messages)]}
    if row.get("tools"):
        result["tools"] = row["tools"]
    return result


def sliced(rows: Sequence[Any], split: str) -> Sequence[Any]:
    """Return the part of `rows` that a split such as `train[:100]` or `train[10%:]` names; all for a bare name.

    Raises:
        DataError: The slice cannot be read, or is empty.
    """
    if "[" not in split:
        return rows
    match = _SLICE.match(split)
    if not match:
        raise DataError(f"the split '{split}' cannot be read; write name[start:stop], in rows or percent.")
    part = rows[slice(*(_bound(text, len(rows)) for text in match.groups()))]
    if not part:
        raise DataError(f"the split '{split}' is empty: there are {len(rows)} rows.")
    return part


def _bound(text: str | None, rows: int) -> int | None:
    if text is None:
        return None
    return round(rows * int(text[:-1]) / 100) if text.endswith("%") else int(text)


def _form(row: Mapping[str, Any], place: str) -> str:
    if "messages" in row:
        return "messages"
    if isinstance(row.get("conversation"), Mapping) and "messages" in row["conversation"]:
        return "conversation"
    if "instruction" in row and "output" in row:
        return "alpaca"
    if "conversations" in row:
        return "sharegpt"
    if "prompt" in row and "completion" in row:
        return "prompt"
    keys = ", ".join(map(str, row)) or "none"
    raise DataError(
        f"{place}: a row with the keys {keys} is no conversation. Known forms: messages; conversation.messages; "
        "instruction, input, output; conversations of from and value; prompt and completion."
    )


def _alpaca(row: Mapping[str, Any], place: str) -> list[Any]:
    instruction, extra, output = row.get("instruction"), row.get("input") or "", row.get("output")
    for name, value in (("instruction", instruction), ("input", extra), ("output", output)):
        if not isinstance(value, str):
            raise DataError(f"{place}: '{name}' must be text, got {type(value).__name__}.")
    question = f"{instruction}\n\n{extra}" if extra else instruction
    return [{"role": "user", "content": question}, {"role": "assistant", "content": output}]


def _from_sharegpt(turn: Any, place: str, index: int) -> dict[str, Any]:
    role = turn.get("from") if isinstance(turn, Mapping) else None
    if role not in SHAREGPT:
        raise DataError(f"{place}: turn {index} is from {role!r}; known: {', '.join(SHAREGPT)}.")
    return {"role": SHAREGPT[role], "content": turn.get("value")}


def _message(turn: Any, place: str, index: int) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise DataError(f"{place}: turn {index} is {type(turn).__name__}; expected an object with role and content.")
    if turn.get("role") not in ROLES:
        raise DataError(f"{place}: turn {index} has the role {turn.get('role')!r}; known: {', '.join(ROLES)}.")
    message = {key: value for key, value in turn.items() if value is not None}
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = _text_of(content, place, index)
    elif content is None and message.get("tool_calls"):
        message["content"] = ""
    elif not isinstance(content, str):
        raise DataError(f"{place}: turn {index} has no text: content is {type(content).__name__}.")
    return message


def _text_of(items: list[Any], place: str, index: int) -> str:
    for item in items:
        if not (isinstance(item, Mapping) and item.get("type") == "text"):
            kind = item.get("type") if isinstance(item, Mapping) else type(item).__name__
            raise DataError(f"{place}: turn {index} holds an item of type {kind!r}; text_sft takes text only.")
    texts = [item.get("text", item.get("content")) for item in items]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{place}: turn {index} holds a text item without text.")
    return "".join(texts)


def _list(row: Any, key: str, place: str) -> list[Any]:
    value = row.get(key) if isinstance(row, Mapping) else None
    if not isinstance(value, list):
        raise DataError(f"{place}: '{key}' must be a list, got {type(value).__name__}.")
    return value


def _jsonl(file: Path) -> Iterator[tuple[str, Any]]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{file}:{number}", _loads(line, f"{file}:{number}")


def _json(file: Path) -> Iterator[tuple[str, Any]]:
    rows = _loads(file.read_text(encoding="utf-8-sig"), str(file))
    if not isinstance(rows, list):
        raise DataError(f"{file}: expected a list of rows, got {type(rows).__name__}; one object a line is .jsonl.")
    for index, row in enumerate(rows):
        yield f"{file}, row {index}", row


def _parquet(file: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(file)
    except pyarrow.ArrowException as error:
        raise DataError(f"{file} is no readable parquet file: {error}") from error
    for index, row in enumerate(table.to_pylist()):
        yield f"{file}, row {index}", row


def _loads(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON: {error}.") from error


def _nearest(file: Path) -> str:
    if not file.parent.is_dir():
        return f" The folder '{file.parent}' does not exist either."
    names = sorted(path.name for path in file.parent.iterdir() if path.suffix in (".jsonl", ".json", ".parquet"))
    return f" '{file.parent}' holds: {', '.join(names[:8])}." if names else ""
