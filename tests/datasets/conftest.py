"""Dataset components, called as the kernel calls them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oumi_kernel import DatasetComponent
from oumi_kernel.config import DataParams, DatasetParams, DatasetSplitParams, ModelParams, TrainingConfig
from oumi_kernel.contracts import Run
from oumi_plugins.datasets.hub import Hub
from oumi_plugins.datasets.text_sft import TextSft

COMPONENTS: dict[str, type[DatasetComponent]] = {"text_sft": TextSft}

Rows = Callable[..., Any]


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    """Return `rows("text_sft", dataset_path=..., dataset_kwargs={...})`; other names go to `hub`, as in the kernel."""

    def load(dataset_name: str, **entry: Any) -> Any:
        component = COMPONENTS.get(dataset_name, Hub)
        target = entry.pop("target_col", None)
        dataset = DatasetParams(dataset_name=dataset_name, **entry)
        data = DataParams(train=DatasetSplitParams(datasets=[dataset], target_col=target))
        run = Run(config=TrainingConfig(model=ModelParams(model_name="m"), data=data), folder=tmp_path)
        params = component.params_type(**dataset.dataset_kwargs)
        return component().oumi_load_dataset(params=params, dataset=dataset, run=run)  # pyright: ignore

    return load


Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return `write(line, line, ..., name="rows.jsonl")`: a file beside the configuration, and the path to it."""

    def to(*lines: str | bytes, name: str = "rows.jsonl") -> str:
        data = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
        (tmp_path / name).write_bytes(data)
        return f"./{name}"

    return to
