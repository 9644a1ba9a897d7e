"""Local files and folders into rows, each with the place where it stands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from oumi_kernel import DataError

T = TypeVar("T")
_SPLIT = re.compile(r"(?P<name>[\w.-]+)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


def read_rows(path: str, split: str) -> list[tuple[str, Any]]:
    """Return (place, row) for every row of a .jsonl, .json or .parquet file, or of a folder of `save_to_disk`.

    JSON is read as it is: no type is inferred over rows. A file has one split, whatever it is called; of a folder
    with several, `split` chooses.

    Raises:
        DataError: It is missing, of another kind, empty, or a row cannot be read.
    """
    file = Path(path)
    readers = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}
    if file.is_dir():
        rows = list(_saved(file, split_name(split)))
    elif not file.exists():
        raise DataError(f"there is no file '{path}'.{_beside(file.parent, readers)}")
    elif file.suffix not in readers:
        raise DataError(f"'{path}' is no file of a kind that can be read: {', '.join(readers)}.")
    else:
        try:
            rows = list(readers[file.suffix](file))
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not rows:
        raise DataError(f"{path} holds no rows.")
    return rows


def split_name(split: str) -> str:
    """Return the name in a split such as `train` or `train[:100]`.

    Raises:
        DataError: It is no such split.
    """
    return _parts(split)["name"] or ""


def sliced(rows: Sequence[T], split: str) -> Sequence[T]:
    """Return the part of `rows` that a split such as `train[:100]` or `train[10%:]` names; all for a bare name.

    Raises:
        DataError: The split cannot be read, or the part is empty.
    """
    parts = _parts(split)
    part = rows[slice(_bound(parts["start"], len(rows)), _bound(parts["stop"], len(rows)))]
    if not part:
        raise DataError(f"the split '{split}' is empty: there are {len(rows)} rows.")
    return part


def _parts(split: str) -> dict[str, str | None]:
    match = _SPLIT.fullmatch(split)
    if not match:
        raise DataError(f"the split '{split}' cannot be read; write name, or name[start:stop] in rows or percent.")
    return match.groupdict()


def _bound(text: str | None, rows: int) -> int | None:
    if text is None:
        return None
    return round(rows * int(text[:-1]) / 100) if text.endswith("%") else int(text)


def _jsonl(file: Path) -> Iterator[tuple[str, Any]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{file}:{number}", _loads(line, f"{file}:{number}")


def _json(file: Path) -> Iterator[tuple[str, Any]]:
    data = file.read_bytes()
    if not data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        yield from _jsonl(file)
        return
    for index, row in enumerate(_loads(data, str(file))):
        yield f"{file}[{index}]", row


def _parquet(file: Path) -> Iterator[tuple[str, Any]]:
    from pyarrow import ArrowException, parquet

    try:
        rows = parquet.read_table(file).to_pylist()
    except ArrowException as error:
        raise DataError(f"{file} is no parquet file that can be read: {error}") from error
    for index, row in enumerate(rows):
        yield f"{file}[{index}]", row


def _saved(folder: Path, split: str) -> Iterator[tuple[str, Any]]:
    import datasets

    try:
        table = datasets.load_from_disk(str(folder))
    except FileNotFoundError as error:
        message = f"the folder '{folder}' is none that datasets.save_to_disk wrote."
        raise DataError(f"{message}{_beside(folder, ('.jsonl', '.json', '.parquet'))}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} cannot be read: {error}") from error
    if isinstance(table, datasets.DatasetDict):
        if split not in table:
            raise DataError(f"{folder} has no split '{split}'; splits: {', '.join(map(str, table))}.")
        table = table[split]
    for index, row in enumerate(table):
        yield f"{folder}[{index}]", row


def _loads(data: bytes, place: str) -> Any:
    try:
        return json.loads(data.removeprefix(b"\xef\xbb\xbf").decode())
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 text at byte {error.start}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON: {error}.") from error


def _beside(folder: Path, kinds: Sequence[str] | dict[str, Any]) -> str:
    if not folder.is_dir():
        return f" The folder '{folder}' does not exist either."
    names = sorted(path.name for path in folder.iterdir() if path.suffix in kinds)
    return f" '{folder}' holds: {', '.join(names[:8])}." if names else ""
