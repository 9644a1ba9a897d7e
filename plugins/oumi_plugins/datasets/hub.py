"""Datasets of the hub, by the `datasets` library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from oumi_kernel import DatasetComponent, Params, hookimpl
from oumi_kernel.config import DatasetParams
from oumi_kernel.contracts import Row, Run


class HubParams(Params):
    """Which columns hold what. All null: read off the columns' names."""

    hf_dataset_path: str | None = None
    """Hub id, where `dataset_name` is HuggingFaceDataset or PromptResponseDataset."""

    messages_column: str | None = None
    """The column that holds conversations: lists of role and content."""

    prompt_column: str | None = None
    """The column that holds prompts. Needs `response_column`."""

    response_column: str | None = None
    """The column that holds responses. Needs `prompt_column`."""

    text_column: str | None = None
    """The column that holds plain text, all of which is trained on."""

    revision: str | None = None
    """Branch, tag or commit of the dataset. Null: its main branch."""

    def check(self) -> Iterator[tuple[str, str]]:
        """Refuse half a mapping, and two at once."""
        if (self.prompt_column is None) != (self.response_column is None):
            missing = "prompt_column" if self.prompt_column is None else "response_column"
            yield missing, "is missing: prompt_column and response_column go together."
        ways = [name for name in ("messages_column", "prompt_column", "text_column") if getattr(self, name) is not None]
        if len(ways) > 1:
            yield ways[1], f"says a second time what to train on; {ways[0]} says it already."


class Hub(DatasetComponent):
    """Any dataset that the `datasets` library loads by name: conversations, prompts and responses, or plain text."""

    params_type = HubParams
    without_effect = {
        "data.*.datasets[].trust_remote_code": "reading rows runs no code of others.",
    }

    @hookimpl
    def oumi_load_dataset(self, params: HubParams, dataset: DatasetParams, run: Run) -> Sequence[Row]:
        """Return the rows as conversations, as `{"text": ...}`, or as tokens where the dataset holds `input_ids`.

        Rows are converted when they are asked for.

        Raises:
            DataError: It cannot be had, its columns are not recognised, or a row cannot be read.
        """
        from oumi_plugins.datasets._hub import load_rows

        return load_rows(params, dataset, run)
