"""Local files and folders into rows, each with the place where it stands."""

from __future__ import annotations

import json
import re
import weakref
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, overload

from oumi_kernel import DataError
from oumi_kernel.contracts import Row

_SPLIT = re.compile(r"(?P<name>[\w.-]+)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")

Read = Callable[[Mapping[str, Any], str], Row]


class Source(Protocol):
    """Stored rows, each read when it is asked for, and the place where it stands."""

    def __len__(self) -> int: ...
    def row(self, index: int, /) -> Any: ...
    def place(self, index: int, /) -> str: ...


class Converted(Sequence[Row]):
    """The rows of a part of a source, read and converted when they are asked for."""

    def __init__(self, source: Source, read: Read, part: range | None = None) -> None:
        self._source, self._read = source, read
        self._part = range(len(source)) if part is None else part

    def __len__(self) -> int:
        return len(self._part)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return Converted(self._source, self._read, self._part[index])
        position = self._part[index]
        return self._read(self._source.row(position), self._source.place(position))


def read_rows(path: str, split: str) -> Source:
    """Return the rows of a .jsonl, .json or .parquet file, or of a folder of `save_to_disk`.

    JSON is read as it is: no type is inferred over rows. Rows stay on the disk, but for those of a .json file that is
    one array. A file has one split, whatever it is called; of a folder with several, `split` chooses.

    Raises:
        DataError: It is missing, of another kind, empty, or cannot be read.
    """
    file = Path(path)
    readers = {".jsonl": _Lines, ".json": _json, ".parquet": _parquet}
    if file.is_dir():
        rows = _saved(file, split_name(split))
    elif not file.exists():
        raise DataError(f"there is no file '{path}'.{_beside(file.parent, readers)}")
    elif file.suffix not in readers:
        raise DataError(f"'{path}' is no file of a kind that can be read: {', '.join(readers)}.")
    else:
        try:
            rows = readers[file.suffix](file)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not len(rows):
        raise DataError(f"{path} holds no rows.")
    return rows


def split_name(split: str) -> str:
    """Return the name in a split such as `train` or `train[:100]`.

    Raises:
        DataError: It is no such split.
    """
    return _parts(split)["name"] or ""


def part_of(rows: int, split: str) -> range:
    """Return which of `rows` rows a split such as `train[:100]` or `train[10%:]` names; all for a bare name.

    Raises:
        DataError: The split cannot be read, or the part is empty.
    """
    parts = _parts(split)
    part = range(rows)[slice(_bound(parts["start"], rows), _bound(parts["stop"], rows))]
    if not part:
        raise DataError(f"the split '{split}' is empty: there are {rows} rows.")
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


class _Lines:
    """The lines of a .jsonl file that are not empty."""

    def __init__(self, file: Path) -> None:
        self._path, self._file = file, file.open("rb")
        weakref.finalize(self, self._file.close)
        self._starts, self._numbers = array("q"), array("q")
        start = 0
        for number, line in enumerate(self._file, 1):
            if line.strip():
                self._starts.append(start)
                self._numbers.append(number)
            start += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def row(self, index: int) -> Any:
        self._file.seek(self._starts[index])
        return _loads(self._file.readline(), self.place(index))

    def place(self, index: int) -> str:
        return f"{self._path}:{self._numbers[index]}"


def without_absent(row: Any) -> Any:
    """Return a row of an Arrow table without the nulls in the objects that it holds."""
    if not isinstance(row, Mapping):
        return row
    return {key: _pruned(value) if _holds_objects(value) else value for key, value in row.items()}


def _holds_objects(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and bool(value) and isinstance(value[0], Mapping))


def _pruned(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _pruned(inner) for key, inner in value.items() if inner is not None}
    return [_pruned(inner) for inner in value] if isinstance(value, list) else value


class Table:
    """A table in which a row is found by its number: a list, or one of the `datasets` library, mapped into memory."""

    def __init__(self, table: Any, place: Callable[[int], str]) -> None:
        self._table, self.place = table, place

    def __len__(self) -> int:
        return len(self._table)

    def row(self, index: int) -> Any:
        """Return a row as it was written: Arrow gives objects of one column the keys of all rows, null where absent."""
        row = self._table[index]
        return row if isinstance(self._table, list) else without_absent(row)


def _json(file: Path) -> Source:
    data = file.read_bytes()
    if not data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        return _Lines(file)
    return Table(_loads(data, str(file)), lambda index: f"{file}[{index}]")


def _parquet(file: Path) -> Source:
    import datasets
    from datasets.exceptions import DatasetsError
    from pyarrow import ArrowException

    try:
        table = datasets.Dataset.from_parquet(str(file))
    except (ArrowException, DatasetsError, ValueError) as error:
        reason = error.__cause__ or error
        raise DataError(f"{file} is no parquet file that can be read: {reason}") from error
    return Table(table, lambda index: f"{file}[{index}]")


def _saved(folder: Path, split: str) -> Source:
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
    return Table(table, lambda index: f"{folder}[{index}]")


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
    if not names:
        return f" '{folder}' holds none that can be read: {', '.join(kinds)}."
    return f" '{folder}' holds: {', '.join(names[:8])}."
