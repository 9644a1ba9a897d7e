"""EVA: an adapter that begins with the directions in which its inputs vary most (arXiv 2410.07170)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from peft.tuners.lora.eva import initialize_lora_eva_weights
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from oumi_kernel import ConfigError, Problem
from oumi_kernel.contracts import Run

IGNORE = -100
TOKENS = 1024
"""Tokens that the library looks at together, at least; what it finds does not depend on the batches of training."""


def start_from_data(model: Any, examples: Sequence[Mapping[str, Any]], run: Run) -> None:
    """Set the first matrices of a model's adapter, and the ranks, from examples in an order of the run's seed.

    Raises:
        ConfigError: There are fewer tokens than directions to find.
    """
    training = run.config.training
    ignore = IGNORE if training.label_ignore_index is None else training.label_ignore_index
    model.active_peft_config.eva_config.label_mask_value = ignore
    batches: Any = DataLoader(
        examples,  # pyright: ignore[reportArgumentType] - any sequence serves
        batch_sampler=_Batches(examples, training.data_seed, model.active_peft_config),
        collate_fn=lambda rows: _padded(rows, ignore),
    )
    was_training = model.training
    model.eval()
    if torch.cuda.is_available():
        model.to("cuda")
    initialize_lora_eva_weights(model, batches, gather_distributed_inputs=False, show_progress_bar=False)
    model.train(was_training)


class _Batches:
    """Examples in an order of a seed, as many at a time as have enough tokens: the library waits for ever for such."""

    def __init__(self, examples: Sequence[Mapping[str, Any]], seed: int, config: Any) -> None:
        ranks = max([config.r, *config.rank_pattern.values()])
        self._examples, self._eva = examples, config.eva_config
        self._order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()
        self._tokens = max(TOKENS, needed := round(ranks * self._eva.rho))
        if sum(map(self._count, next(iter(self)))) < needed:
            message = (
                f"EVA looks for {needed} directions, and the training examples have fewer tokens that it looks at."
            )
            hint = "Lower peft.lora_r or peft_kwargs.eva_config.rho, or begin with DEFAULT."
            raise ConfigError(Problem(code="not-served", path="peft.lora_init_weights", message=message, hint=hint))

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of each batch; too few tokens at the end are no batch, unless there are no more at all."""
        batch, tokens, is_first = list[int](), 0, True
        for index in self._order:
            batch.append(index)
            tokens += self._count(index)
            if tokens >= self._tokens:
                yield batch
                batch, tokens, is_first = [], 0, False
        if is_first:
            yield batch

    def __len__(self) -> int:
        """Return how many there may be at most."""
        return len(self._order)

    def _count(self, index: int) -> int:
        labels = torch.as_tensor(self._examples[index]["labels"])
        return int((labels != self._eva.label_mask_value).sum()) if self._eva.use_label_mask else len(labels)


def _padded(rows: Sequence[Mapping[str, Any]], ignore: int) -> dict[str, torch.Tensor]:
    """Return a padded batch; a pack is read as the one sequence that it is here."""
    ids = [torch.as_tensor(row["input_ids"], dtype=torch.int64) for row in rows]
    labels = [torch.as_tensor(row["labels"], dtype=torch.int64) for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=ignore),
    }
