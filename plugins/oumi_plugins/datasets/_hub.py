"""Loading by name, and mapping columns to conversations or text, one row at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetsError
from pyarrow import ArrowException

from oumi_kernel import DataError
from oumi_kernel.config import DatasetParams
from oumi_kernel.contracts import Row, Run
from oumi_plugins.datasets._conversations import FORMS, conversation
from oumi_plugins.datasets._files import Converted, Read, Source, Table, part_of, read_rows
from oumi_plugins.datasets.hub import HubParams

NOT_TO_BE_HAD = (OSError, ValueError, RuntimeError, KeyError, ArrowException, DatasetsError)
"""What the library raises for a name, a subset, a split or a file that it cannot load."""

LOOKED_AT = 1000
"""Rows of a local file whose keys say what columns it has."""


def load_rows(params: HubParams, dataset: DatasetParams, run: Run) -> Sequence[Row]:
    """Load a dataset by name, or from the file or folder that `dataset_path` names.

    Raises:
        DataError: It cannot be had, or its columns are not recognised.
    """
    name = params.hf_dataset_path or dataset.dataset_name
    if dataset.dataset_path is not None:
        source = read_rows(run.locate(dataset.dataset_path), dataset.split)
        part = part_of(len(source), dataset.split)
        columns = _columns(source, part)
        read = _target(columns, dataset, run) or _reader(params, columns, dataset.dataset_path)
        return Converted(source, read, part)
    located = run.locate(name)
    try:
        table = datasets.load_dataset(located, dataset.subset, split=dataset.split, revision=params.revision)
    except NOT_TO_BE_HAD as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(f"the dataset '{name}' could not be loaded: {reason} {_way_out(located)}") from error
    source = Table(table, lambda index: f"{name}, {dataset.split}, row {index}")
    read = _target(table.column_names, dataset, run) or _reader(params, table.column_names, name)
    return Converted(source, read)


def _columns(source: Source, part: range) -> list[str]:
    rows = (source.row(index) for index in part[:LOOKED_AT])
    return list(dict.fromkeys(key for row in rows if isinstance(row, Mapping) for key in row))


def _target(columns: list[str], dataset: DatasetParams, run: Run) -> Read | None:
    """Return what reads the column that the dataset's split names as `target_col`; None if it names none of these."""
    data = run.config.data
    splits = (
        split for split in (data.train, data.validation, data.test) if any(one is dataset for one in split.datasets)
    )
    column = next((split.target_col for split in splits), None)
    if column is None or column not in columns:
        return None

    def read(row: Mapping[str, Any], place: str) -> Row:
        value = row.get(column)
        if not isinstance(value, list) or not value or not isinstance(value[0], Mapping):
            return {key: row[key] for key in (column, "labels") if key in row}
        name, form = ("conversations", "sharegpt") if "from" in value[0] else ("messages", "messages")
        talk = conversation({**row, name: value}, form, place)
        return {column: talk.pop("messages")} | talk

    return read


def _way_out(name: str) -> str:
    if Path(name).is_file():
        return "A local file is read by dataset_name: text_sft with dataset_path."
    return (
        "Check its name, subset and split, and the network; dataset_kwargs.hf_dataset_path names the dataset where "
        "dataset_name names how it is read."
    )


def _reader(params: HubParams, columns: list[str], name: str) -> Read:
    """Return what reads a row: by the columns that the parameters name, else by the columns that are known."""
    for key in ("messages_column", "prompt_column", "response_column", "text_column"):
        column = getattr(params, key)
        if column is not None and column not in columns:
            raise DataError(f"'{name}' has no column '{column}' ({key}); columns: {', '.join(columns)}.")
    messages, prompt, response = params.messages_column, params.prompt_column, params.response_column
    if messages is not None:
        return lambda row, place: conversation({**row, "messages": row[messages]}, "messages", place)
    if prompt is not None and response is not None:
        return lambda row, place: conversation(
            {"prompt": row[prompt], "completion": row[response]}, "prompt_completion", place
        )
    if params.text_column is not None:
        return _text_of(params.text_column)
    for form, (needed, _) in FORMS.items():
        if needed <= set(columns):
            return lambda row, place: conversation(row, form, place)
    if "input_ids" in columns:
        return lambda row, _: row
    if "text" in columns:
        return _text_of("text")
    raise DataError(
        f"'{name}' has the columns {', '.join(columns)}, none of which is known to hold conversations or text. "
        "Name them in dataset_kwargs: messages_column, or prompt_column and response_column, or text_column."
    )


def _text_of(column: str) -> Read:
    def read(row: Mapping[str, Any], place: str) -> Row:
        if not isinstance(row.get(column), str):
            raise DataError(f"{place}: {column}: expected text, got {type(row.get(column)).__name__}.")
        return {"text": row[column]}

    return read
