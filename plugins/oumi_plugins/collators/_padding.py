"""Padding by length: what is padding is known from where an example ends, never from a token's id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from oumi_kernel import DataError
from oumi_kernel.contracts import Run

IGNORE = -100
"""The label that cross-entropy leaves out, where the configuration names none."""


def build_collator(tokenizer: Any, multiple: int | None, run: Run) -> PaddingCollator:
    """Return the collator of a run, which pads to a multiple of `multiple` tokens."""
    return PaddingCollator(
        tokenizer,
        ignore_index=run.config.training.label_ignore_index,
        multiple=multiple,
        longest=run.config.model.model_max_length,
    )


class PaddingCollator:
    """Turns examples of token lists into one batch, padded on the right.

    Always on the right, whatever the tokenizer's side for generation is: there a token's position is its index, as in
    the example alone, so that models with learned positions see the same with and without padding.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        ignore_index: int | None = None,
        multiple: int | None = None,
        longest: int | None = None,
    ) -> None:
        """Take the tokenizer's padding token, and any other where it has none: attention and labels leave it out.

        Args:
            tokenizer: The tokenizer.
            ignore_index: The label of positions that are not supervised.
            multiple: Pad to a multiple of this many tokens.
            longest: The most tokens that an example may have; None: any number.
        """
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self._ignore = IGNORE if ignore_index is None else ignore_index
        self._multiple = multiple or 1
        self._longest = longest

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> Mapping[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask` and `labels`, each int64 (batch, tokens).

        Where an example is a pack (it has `lengths`, the tokens of each of its sequences) there are `position_ids` too,
        int64 (batch, tokens), which begin at 0 with each sequence.

        Raises:
            DataError: An example is empty, has not as many labels as tokens, is longer than the model takes, or is a
                pack whose lengths do not add up.
        """
        lengths = [self._length(example) for example in examples]
        width = -(-max(lengths) // self._multiple) * self._multiple
        shape = (len(examples), width)
        batch = {
            "input_ids": torch.full(shape, self._pad),
            "attention_mask": torch.zeros(shape, dtype=torch.int64),
            "labels": torch.full(shape, self._ignore),
        }
        for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
            batch["input_ids"][row, :length] = torch.as_tensor(example["input_ids"])
            batch["attention_mask"][row, :length] = 1
            batch["labels"][row, :length] = torch.as_tensor(example["labels"])
        if any("lengths" in example for example in examples):
            batch["position_ids"] = torch.zeros(shape, dtype=torch.int64)
            for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
                batch["position_ids"][row, :length] = _positions(example.get("lengths", [length]), length)
        return batch

    def _length(self, example: Mapping[str, Any]) -> int:
        for key in ("input_ids", "labels"):
            if key not in example:
                raise DataError(f"an example has no {key}; its keys: {', '.join(example) or 'none'}.")
        length, labels = len(example["input_ids"]), len(example["labels"])
        if length == 0:
            raise DataError("an example has no tokens.")
        if labels != length:
            raise DataError(f"an example has {length} tokens and {labels} labels; every token needs one.")
        if self._longest is not None and length > self._longest:
            raise DataError(
                f"an example has {length} tokens, more than model.model_max_length: {self._longest}. "
                "Raise it, or let the trainer cut examples (trainer_kwargs.max_length)."
            )
        return length


def _positions(lengths: Sequence[int], tokens: int) -> torch.Tensor:
    """Return the position of each token within its sequence, int64 (tokens,)."""
    sizes = torch.as_tensor(lengths)
    if int(sizes.sum()) != tokens or bool((sizes < 1).any()):
        raise DataError(f"an example has {tokens} tokens, and its lengths are {sizes.tolist()}; they must add up.")
    starts = sizes.cumsum(0) - sizes
    return torch.arange(tokens) - starts.repeat_interleave(sizes)
