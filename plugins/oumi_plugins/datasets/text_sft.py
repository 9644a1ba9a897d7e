"""Conversations from a local file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from oumi_kernel import ConfigError, DataError, DatasetComponent, Params, Problem, hookimpl
from oumi_kernel.config import DatasetParams
from oumi_kernel.contracts import Row, Run


class TextSftParams(Params):
    """Parameters of `text_sft`."""

    format: Literal[
        "auto", "messages", "conversation", "oumi", "alpaca", "sharegpt", "prompt_completion", "prompt_response"
    ] = "auto"
    """The form of every row: messages; conversation.messages; either of these two (oumi); instruction, input, output
    (alpaca); conversations of from and value (sharegpt); prompt and completion; prompt and response. auto: read off
    the keys of the first row."""


class TextSft(DatasetComponent):
    """Conversations from `dataset_path`: a .jsonl, .json or .parquet file, or a folder that save_to_disk wrote."""

    params_type = TextSftParams
    target_column = "messages"
    without_effect = {
        "data.*.datasets[].trust_remote_code": "reading rows runs no code of others.",
    }

    @hookimpl
    def oumi_load_dataset(self, params: TextSftParams, dataset: DatasetParams, run: Run) -> Sequence[Row]:
        """Return the rows as `{"messages": [{"role": ..., "content": ...}, ...]}`, all of the form of the first one.

        Rows stay in the file; each is read and checked when it is asked for.

        Raises:
            ConfigError: `dataset_path` is not set, or `subset` is.
            DataError: There is no such file, a row cannot be read, or a row has another form than the ones before.
        """
        from oumi_plugins.datasets._files import Converted, part_of, read_rows

        if dataset.dataset_path is None:
            raise _wrong("dataset_path", f"'{dataset.dataset_name}' reads a local file: give its path.")
        if dataset.subset is not None:
            raise _wrong("subset", f"a local file has no subset '{dataset.subset}'; remove the key.")
        source = read_rows(run.locate(dataset.dataset_path), dataset.split)
        first, place = source.row(0), source.place(0)
        return Converted(source, _reader(first, place, params.format), part_of(len(source), dataset.split))


def _wrong(key: str, message: str) -> ConfigError:
    return ConfigError(Problem(code="wrong-value", path=f"data.*.datasets[].{key}", message=message))


def _reader(first: Any, first_place: str, asked: str) -> Callable[[Any, str], Row]:
    """Return what reads a row, which must have the form that is asked for, or else that of the first row."""
    from oumi_plugins.datasets._conversations import conversation, form_of

    either = ("messages", "conversation")
    found = form_of(first, first_place) if asked in ("auto", "oumi") else asked
    if asked == "oumi" and found not in either:
        raise DataError(f"{first_place}: the row has the form '{found}', not messages or conversation.")

    def read(row: Any, place: str) -> Row:
        own = form_of(row, place) if asked in ("auto", "oumi") else asked
        if own != found and not (own in either and found in either):
            raise DataError(
                f"{place}: the row has the form '{own}', {first_place} the form '{found}'; one file, one form."
            )
        return conversation(row, own, place)

    return read
