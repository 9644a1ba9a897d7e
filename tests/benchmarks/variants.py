"""What is compared: each variant is one way to run the same training, as a user of that program would."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.benchmarks.materials import BATCH, LONGEST, SEED

LEARNING_RATE = 1e-3
PACKS = 3
"""Packs of a step: about as many tokens as eight chats."""

KEEP_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**36)}
"""What the allocator of glibc reads; large blocks then come from memory that was used before."""


class Variant(NamedTuple):
    """One way to run the training.

    Attributes:
        peer: Whose trainer: ours, trainer (of transformers) or trl.
        settings: What is not the default of this benchmark.
        environment: Variables that the process is given.
        same_batches: Whether each step sees the batch that plain Trainer sees.
        float32: Whether everything is computed in float32, so that losses are equal where batches are.
        against: The variant whose held-out loss it must have for a ratio to count.
    """

    peer: str
    settings: dict[str, Any] = {}
    environment: dict[str, str] = {}
    same_batches: bool = True
    float32: bool = True
    against: str = "trainer"


TUNED = {"fast_matmul": True, "sampling": "group_by_length"}
PACKED = {"pack": True, "batch_size": PACKS}
VARIANTS = {
    "ours": Variant("ours"),
    "trainer": Variant("trainer"),
    "trainer-tuned": Variant("trainer", TUNED, KEEP_FREED_MEMORY, same_batches=False),
    "ours-bf16": Variant("ours", {"bf16": True}, float32=False),
    "trainer-bf16": Variant("trainer", {"bf16": True}, float32=False),
    "trl": Variant("trl"),
    "ours-packed": Variant("ours", PACKED, same_batches=False, against="trl-packed"),
    "trl-packed": Variant("trl", PACKED, same_batches=False),
}
REFERENCE = "trainer"
RIVALS = {"trainer": "of Trainer", "trainer-tuned": "of tuned", "trl-packed": "of TRL packed"}
"""Those whose speed the others' is divided by."""


class Job(NamedTuple):
    """A run that is ready to start: its command, where its steps appear, and where the model will be."""

    command: list[str]
    lines: Path
    output: Path


def prepare(variant: Variant, materials: Path, output: Path, peers_python: str, longest: int = LONGEST) -> Job:
    """Write the configuration of a run into its output folder."""
    output.mkdir(parents=True, exist_ok=True)
    settings = {"batch_size": BATCH, "learning_rate": LEARNING_RATE, "seed": SEED, "max_length": longest}
    settings |= variant.settings
    if variant.peer == "ours":
        file = output / "train.yaml"
        file.write_text(yaml.safe_dump(our_config(settings, materials, output), sort_keys=False))
        return Job([sys.executable, "-m", "oumi_kernel", "run", str(file)], output / "metrics.jsonl", output)
    lines, rows = output / "steps.jsonl", materials / "in_order.jsonl"
    settings |= {"peer": variant.peer, "model": str(materials / "model"), "rows": str(rows), "lines": str(lines)}
    file = output / "settings.json"
    file.write_text(json.dumps(settings | {"output_dir": str(output)}, indent=2))
    return Job([peers_python, str(Path(__file__).with_name("peers.py")), str(file)], lines, output)


def our_config(settings: dict[str, Any], materials: Path, output: Path) -> dict[str, Any]:
    """Return the configuration as a user writes it."""
    packing = {"pack": True, "stream": True} if settings.get("pack") else {}
    return {
        "model": {
            "model_name": str(materials / "model"),
            "model_max_length": settings["max_length"],
            "torch_dtype_str": "float32",
        },
        "data": {
            "train": {
                "collator_name": "text_with_padding",
                "datasets": [{"dataset_name": "text_sft", "dataset_path": str(materials / "train.jsonl")}],
                **packing,
            }
        },
        "training": {
            "trainer_type": "TRL_SFT",
            "output_dir": str(output),
            "num_train_epochs": 1,
            "per_device_train_batch_size": settings["batch_size"],
            "seed": settings["seed"],
            "data_seed": settings["seed"],
            "optimizer": "adamw_torch_fused",
            "learning_rate": settings["learning_rate"],
            "lr_scheduler_type": "constant",
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "mixed_precision_dtype": "bf16" if settings.get("bf16") else "none",
            "logging_steps": 1,
            "save_steps": 0,
            "save_final_model": True,
        },
    }
