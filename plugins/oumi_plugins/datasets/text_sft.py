"""Conversations from a local file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

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
        """Return the rows as `{"messages": [{"role": ..., "content": ...}, ...]}`, all of one form.

        Raises:
            ConfigError: `dataset_path` is not set, or `subset` is.
            DataError: There is no such file, a row cannot be read, or a row has another form than the ones before.
        """
        from oumi_plugins.datasets._files import read_rows, sliced

        if dataset.dataset_path is None:
            raise _wrong("dataset_path", f"'{dataset.dataset_name}' reads a local file: give its path.")
        if dataset.subset is not None:
            raise _wrong("subset", f"a local file has no subset '{dataset.subset}'; remove the key.")
        pairs = read_rows(run.locate(dataset.dataset_path), dataset.split)
        return sliced(_conversations(pairs, params.format), dataset.split)


def _wrong(key: str, message: str) -> ConfigError:
    return ConfigError(Problem(code="wrong-value", path=f"data.*.datasets[].{key}", message=message))


def _conversations(pairs: Sequence[tuple[str, Row]], asked: str) -> list[Row]:
    from oumi_plugins.datasets._conversations import conversation, form_of

    either = ("messages", "conversation")
    found = form_of(pairs[0][1], pairs[0][0]) if asked in ("auto", "oumi") else asked
    if asked == "oumi" and found not in either:
        raise DataError(f"{pairs[0][0]}: the row has the form '{found}', not messages or conversation.")
    rows: list[Row] = []
    for place, row in pairs:
        own = form_of(row, place) if asked in ("auto", "oumi") else asked
        if own != found and not (own in either and found in either):
            raise DataError(f"{place}: the row has the form '{own}', the rows before it '{found}'; one file, one form.")
        rows.append(conversation(row, own, place))
    return rows
