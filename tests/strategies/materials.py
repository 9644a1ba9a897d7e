"""A small run for tests of strategies: model, rows of unequal length, and `train.yaml`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.conftest import QUICKSTART


def write_run(folder: Path, *, rows: int = 61, held_out: int = 5, **training: Any) -> None:
    """Write everything that a run needs; only the loss of answers counts, and every step is logged.

    Args:
        folder: Where to.
        rows: How many are trained on.
        held_out: How many are evaluated on.
        **training: Keys of the section `training`.
    """
    shutil.copytree(QUICKSTART / "model", folder / "model")
    lines = (QUICKSTART / "data/train.jsonl").read_text().splitlines()
    (folder / "rows.jsonl").write_text("\n".join(lines[:rows]))
    (folder / "held_out.jsonl").write_text("\n".join(lines[rows : rows + held_out]))
    splits = {"train": "./rows.jsonl", **({"validation": "./held_out.jsonl"} if held_out else {})}
    config = {
        "model": {"model_name": "./model"},
        "data": {
            split: {
                "collator_name": "text_completions_only_with_padding",
                "datasets": [{"dataset_name": "text_sft", "dataset_path": path}],
            }
            for split, path in splits.items()
        },
        "training": {"logging_steps": 1, "enable_tensorboard": False, **training},
    }
    (folder / "train.yaml").write_text(json.dumps(config))
