"""The order in which examples are seen: a pure function of (seed, epoch), so that resuming is arithmetic."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


def epoch_order(examples: int, seed: int, epoch: int) -> list[int]:
    """Return the indices of one epoch, in order."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(examples, generator=generator).tolist()


class OrderedBatches(Sampler[list[int]]):
    """The micro-batches of one epoch, from a given one on; `go_to` says which."""

    def __init__(self, examples: int, batch_size: int, *, seed: int) -> None:
        self._examples, self._size, self._seed = examples, batch_size, seed
        self._epoch, self._start = 0, 0

    def go_to(self, epoch: int, micro_batch: int) -> None:
        """Choose the epoch and its first micro-batch."""
        self._epoch, self._start = epoch, micro_batch

    def __iter__(self) -> Iterator[list[int]]:
        order = epoch_order(self._examples, self._seed, self._epoch)
        for first in range(self._start * self._size, len(order), self._size):
            yield order[first : first + self._size]

    def __len__(self) -> int:
        return max(0, -(-self._examples // self._size) - self._start)
