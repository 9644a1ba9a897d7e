"""Conversations from a local JSONL, JSON or parquet file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from oumi_kernel import ConfigError, DatasetComponent, Params, Problem, hookimpl
from oumi_kernel.config import DatasetParams
from oumi_kernel.contracts import Row, Run


class TextSftParams(Params):
    """Parameters of `text_sft`."""

    format: Literal["auto", "messages", "conversation", "alpaca"] = "auto"
    """The form of the rows: `messages`, `conversation.messages`, or `instruction`/`input`/`output`. auto reads it off
    each row's keys."""


class TextSft(DatasetComponent):
    """Conversations from a local file: `dataset_path` names a .jsonl, .json or .parquet file."""

    params_type = TextSftParams
    target_column = "messages"

    @hookimpl
    def oumi_load_dataset(self, params: TextSftParams, dataset: DatasetParams, run: Run) -> Sequence[Row]:
        """Return the rows as `{"messages": [{"role": ..., "content": ...}, ...]}`."""
        from oumi_plugins.datasets._rows import conversation, read_file, sliced

        if dataset.dataset_path is None:
            message = f"'{dataset.dataset_name}' reads a local file: give its path."
            raise ConfigError(Problem(code="missing-key", path="data.*.datasets[].dataset_path", message=message))
        path = run.locate(dataset.dataset_path)
        rows = [conversation(row, place, params.format) for place, row in read_file(path)]
        return sliced(rows, dataset.split)
