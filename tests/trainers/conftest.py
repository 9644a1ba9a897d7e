"""Runs of the real product on the tiny model, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oumi_kernel.loading import load_text, split_overrides, to_yaml
from oumi_kernel.plugins import resolve, scan
from oumi_kernel.run import run_training
from tests.conftest import QUICKSTART


class Finished:
    """What a run left behind."""

    def __init__(self, folder: Path, summary: Any) -> None:
        self.folder, self.summary = folder, summary

    @property
    def model(self) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.folder)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def figures(self, name: str) -> list[float]:
        return [entry[name] for entry in self.metrics if entry.get(name) is not None]


Train = Callable[..., Finished]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Return `train("--training.max_steps=2", rows=24)`: run the product on real rows, into a folder of its own."""

    def start(*flags: str, rows: int = 24, name: str = "run", validation: int = 0) -> Finished:
        lines = (QUICKSTART / "data/train.jsonl").read_text().splitlines()
        (tmp_path / "train.jsonl").write_text("\n".join(lines[:rows]))
        (tmp_path / "validation.jsonl").write_text("\n".join(lines[100 : 100 + validation]))
        split = {
            "collator_name": "text_completions_only_with_padding",
            "datasets": [{"dataset_name": "text_sft", "dataset_path": str(tmp_path / "train.jsonl")}],
        }
        held_out = split | {
            "datasets": [{"dataset_name": "text_sft", "dataset_path": str(tmp_path / "validation.jsonl")}]
        }
        config = {
            "model": {"model_name": str(QUICKSTART / "model")},
            "data": {"train": split} | ({"validation": held_out} if validation else {}),
            "training": {
                "output_dir": str(tmp_path / name),
                "max_steps": 3,
                "per_device_train_batch_size": 8,
                "learning_rate": 0.01,
                "lr_scheduler_type": "constant",
                "optimizer": "sgd",
                "logging_steps": 1,
                "save_steps": 0,
                "enable_tensorboard": False,
            },
        }
        overrides, rest = split_overrides(flags)
        assert not rest
        loaded = load_text(to_yaml(config), "test.yaml", overrides)
        return Finished(tmp_path / name, run_training(loaded, resolve(loaded, scan())))

    return start
