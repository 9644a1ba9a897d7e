"""EVA: an adapter that begins with the directions in which its inputs vary most (arXiv 2410.07170)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft.tuners.lora.eva import initialize_lora_eva_weights
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from oumi_kernel.contracts import Run

IGNORE = -100


def start_from_data(model: Any, examples: Sequence[Mapping[str, Any]], run: Run) -> None:
    """Set the first matrices of a model's adapter, and the ranks, from examples in an order of the run's seed."""
    training = run.config.training
    ignore = IGNORE if training.label_ignore_index is None else training.label_ignore_index
    model.active_peft_config.eva_config.label_mask_value = ignore
    batches: Any = DataLoader(
        examples,  # pyright: ignore[reportArgumentType] - any sequence serves
        batch_size=training.per_device_train_batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(training.data_seed),
        collate_fn=lambda rows: _padded(rows, ignore),
    )
    was_training = model.training
    model.eval()
    if torch.cuda.is_available():
        model.to("cuda")
    initialize_lora_eva_weights(model, batches, show_progress_bar=False)
    model.train(was_training)


def _padded(rows: Sequence[Mapping[str, Any]], ignore: int) -> dict[str, torch.Tensor]:
    """Return a padded batch; a pack is read as the one sequence that it is here."""
    ids = [torch.as_tensor(row["input_ids"], dtype=torch.int64) for row in rows]
    labels = [torch.as_tensor(row["labels"], dtype=torch.int64) for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=ignore),
    }
