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
    """The micro-batches of one epoch, from a given one on."""

    def __init__(self, examples: int, batch_size: int, *, seed: int, epoch: int, start: int = 0) -> None:
        self._order = epoch_order(examples, seed, epoch)
        self._size, self._start = batch_size, start

    def __iter__(self) -> Iterator[list[int]]:
        for first in range(self._start * self._size, len(self._order), self._size):
            yield self._order[first : first + self._size]

    def __len__(self) -> int:
        return max(0, -(-len(self._order) // self._size) - self._start)
