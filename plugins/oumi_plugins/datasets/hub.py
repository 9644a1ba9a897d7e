"""Datasets of the hub, by the `datasets` library."""

from __future__ import annotations

from collections.abc import Sequence

from oumi_kernel import DatasetComponent, Params, hookimpl
from oumi_kernel.config import DatasetParams
from oumi_kernel.contracts import Row, Run


class HubParams(Params):
    """Which columns hold what. All null: read off the columns' names."""

    hf_dataset_path: str | None = None
    """Hub id, where `dataset_name` is HuggingFaceDataset or PromptResponseDataset."""

    messages_column: str | None = None
    """The column that holds conversations."""

    prompt_column: str | None = None
    """The column that holds prompts."""

    response_column: str | None = None
    """The column that holds responses."""

    text_column: str | None = None
    """The column that holds plain text, all of which is trained on."""

    revision: str | None = None
    """Branch, tag or commit of the dataset. Null: its main branch."""


class Hub(DatasetComponent):
    """Any dataset that the `datasets` library loads by name: conversations, prompts and responses, or plain text."""

    params_type = HubParams
    without_effect = {
        "data.*.datasets[].trust_remote_code": "datasets no longer runs code from repositories.",
    }

    @hookimpl
    def oumi_load_dataset(self, params: HubParams, dataset: DatasetParams, run: Run) -> Sequence[Row]:
        """Return the rows as conversations, or as `{"text": ...}`."""
        from oumi_plugins.datasets._hub import load_rows

        return load_rows(params, dataset, run)
