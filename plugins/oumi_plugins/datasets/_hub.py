"""Loading by name, and mapping columns to conversations or text, one row at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import datasets

from oumi_kernel import DataError
from oumi_kernel.config import DatasetParams
from oumi_kernel.contracts import Row, Run
from oumi_plugins.datasets._rows import conversation
from oumi_plugins.datasets.hub import HubParams

TEXT = "text"


class _Mapped(Sequence[Row]):
    """Rows of an Arrow table, turned into conversations when they are asked for."""

    def __init__(self, table: datasets.Dataset, name: str, read: Callable[[Mapping[str, Any], str], Row]) -> None:
        self._table, self._name, self._read = table, name, read

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        return self._read(self._table[index], f"{self._name}, row {index}")


def load_rows(params: HubParams, dataset: DatasetParams, run: Run) -> Sequence[Row]:
    """Load a dataset by name, or the folder that `save_to_disk` wrote to `dataset_path`.

    Raises:
        DataError: It cannot be had, or its columns are not recognised.
    """
    name = params.hf_dataset_path or dataset.dataset_name
    try:
        if dataset.dataset_path:
            table = datasets.load_from_disk(run.locate(dataset.dataset_path))
            table = table[dataset.split] if isinstance(table, datasets.DatasetDict) else table
        else:
            table = datasets.load_dataset(name, dataset.subset, split=dataset.split, revision=params.revision)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        folder = " A local file is read by dataset_name: text_sft." if Path(name).exists() else ""
        raise DataError(
            f"the dataset '{name}' could not be loaded: {first} Check the name, subset, split and the network.{folder}"
        ) from error
    return _Mapped(table, name, _reader(params, table.column_names, name))


def _reader(params: HubParams, columns: list[str], name: str) -> Callable[[Mapping[str, Any], str], Row]:
    for key in ("messages_column", "prompt_column", "response_column", "text_column"):
        column = getattr(params, key)
        if column is not None and column not in columns:
            raise DataError(f"'{name}' has no column '{column}' ({key}); columns: {', '.join(columns)}.")
    messages, prompt, response = params.messages_column, params.prompt_column, params.response_column
    if messages:
        return lambda row, place: conversation({"messages": row[messages]}, place)
    if prompt and response:
        return lambda row, place: conversation({"prompt": row[prompt], "completion": row[response]}, place)
    if params.text_column or (TEXT in columns and "messages" not in columns):
        return lambda row, place: {TEXT: row[params.text_column or TEXT]}
    known = ({"messages"}, {"conversation"}, {"conversations"}, {"instruction", "output"}, {"prompt", "completion"})
    if not any(form <= set(columns) for form in known):
        raise DataError(
            f"'{name}' has the columns {', '.join(columns)}, none of which is known to hold conversations or text. "
            "Name them in dataset_kwargs: messages_column, or prompt_column and response_column, or text_column."
        )
    return conversation
