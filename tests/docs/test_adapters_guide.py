"""The samples of the guide to adapters are sections that load and name what is installed."""

from __future__ import annotations

import pytest

from oumi_kernel.loading import load_text
from oumi_kernel.plugins import resolve, scan
from tests.conftest import ROOT
from tests.docs.test_docs import blocks

GUIDE = (ROOT / "docs/guides/adapters.md").read_text()
DATA = "data: {train: {datasets: [{dataset_name: text_sft, dataset_path: x.jsonl}]}}\n"


@pytest.mark.parametrize("sample", blocks(GUIDE, "yaml"))
def test_a_sample_loads(sample: str) -> None:
    model = "" if sample.startswith("model:") else "model: {model_name: x}\n"
    loaded = load_text(f"{model}{DATA}{sample}", "sample.yaml")
    resolve(loaded, scan()).raise_for_problems(strict=True)


def test_every_method_is_named() -> None:
    methods = {entry.name for entry in scan().entries if entry.family == "peft"} - {"default", "lora"}
    assert [name for name in methods if f"`{name}`" not in GUIDE] == []
