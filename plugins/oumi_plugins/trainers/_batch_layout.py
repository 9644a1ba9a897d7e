"""How a batch of a collator is laid out for the model: flat, without padding, or padded as it came.

A flat batch is one row: the sequences end to end, with positions that begin again at each. A padded one keeps its rows.
Both say where a next token is learned and which: worked out on the host, since a mask on the device would have to be
waited for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from oumi_kernel import DataError

Laid = dict[str, Any]


def flat(batch: Mapping[str, torch.Tensor], ignore: int) -> Laid:
    """Return a batch without its padding, all sequences in one row.

    Args:
        batch: `input_ids`, `attention_mask` and `labels`, each int64 (batch, tokens), and for packs `position_ids`,
            which begin again at 0 with each sequence.
        ignore: The label of positions that are not supervised.

    Returns:
        `input_ids` and `position_ids`, int64 (1, T); `cu_seq_lens`, int32 (sequences + 1,), where each sequence begins
        and the last ends; `lengths`, the tokens of each; `predicting` and `targets`, int64 (supervised,), the positions
        whose next token is learned, and that token; `tokens`, T.
    """
    real = batch["attention_mask"].bool()
    positions = batch["position_ids"] if "position_ids" in batch else real.long().cumsum(1) - 1
    positions = positions[real]
    starts = (positions == 0).nonzero().squeeze(1)
    bounds = torch.cat([starts, torch.tensor([len(positions)])]).to(torch.int32)
    following = F.pad(batch["labels"][real][1:], (0, 1), value=ignore)
    following[bounds[1:].long() - 1] = ignore  # the last token of a sequence predicts none of the next one
    predicting = (following != ignore).nonzero().squeeze(1)
    return {
        "input_ids": batch["input_ids"][real].unsqueeze(0),
        "position_ids": positions.unsqueeze(0),
        "cu_seq_lens": bounds,
        "lengths": bounds.diff().tolist(),
        "predicting": predicting,
        "targets": following[predicting],
        "tokens": len(positions),
    }


def padded(batch: Mapping[str, torch.Tensor], ignore: int) -> Laid:
    """Return a batch with its padding; `predicting` counts through rows of `tokens`.

    Raises:
        DataError: It holds packs, which only a flat batch keeps apart.
    """
    if "position_ids" in batch:
        raise DataError("packed sequences cannot be padded: the model would read across their borders.")
    following = torch.full_like(batch["labels"], ignore)
    following[:, :-1] = batch["labels"][:, 1:]
    following = following.flatten()
    predicting = (following != ignore).nonzero().squeeze(1)
    return {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "predicting": predicting,
        "targets": following[predicting],
        "tokens": int(batch["attention_mask"].sum()),
    }
