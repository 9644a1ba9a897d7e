"""Padding by length: what is padding is known from where an example ends, never from a token's id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

IGNORE = -100


class PaddingCollator:
    """Turns examples of token lists into one padded batch."""

    def __init__(self, tokenizer: Any, ignore_index: int | None, multiple: int | None) -> None:
        # Without a padding token any id will do: attention and labels leave these positions out.
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self._left = tokenizer.padding_side == "left"
        self._ignore = IGNORE if ignore_index is None else ignore_index
        self._multiple = multiple or 1

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> Mapping[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask` and `labels`, each int64 (batch, tokens)."""
        longest = max(len(example["input_ids"]) for example in examples)
        width = -(-longest // self._multiple) * self._multiple
        shape = (len(examples), width)
        batch = {
            "input_ids": torch.full(shape, self._pad),
            "attention_mask": torch.zeros(shape, dtype=torch.int64),
            "labels": torch.full(shape, self._ignore),
        }
        for row, example in enumerate(examples):
            length = len(example["input_ids"])
            here = slice(width - length, width) if self._left else slice(length)
            batch["input_ids"][row, here] = torch.as_tensor(example["input_ids"])
            batch["attention_mask"][row, here] = 1
            batch["labels"][row, here] = torch.as_tensor(example["labels"])
        return batch
