"""The order in which examples are seen: a pure function of (seed, epoch), so that resuming is arithmetic.

It is the same for any number of processes: those of one step of all processes are a slice of it, which is dealt to the
processes so that their tokens, not their examples, are even.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from oumi_kernel.contracts import World


def epoch_order(examples: int, seed: int, epoch: int) -> list[int]:
    """Return the indices of one epoch, in order."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(examples, generator=generator).tolist()


def dealt(indices: Sequence[int], lengths: Any, processes: int) -> list[list[int]]:
    """Return the share of each process: the longest example left goes to whoever has the fewest tokens.

    A process has none where there are fewer examples than processes. (Graham, "Bounds on multiprocessing timing
    anomalies", 1969: no process has more than 4/3 of what it would have at best.)

    Args:
        indices: Examples of one micro-batch of all processes.
        lengths: Tokens of each example, by its index.
        processes: How many there are.
    """
    if processes == 1:
        return [list(indices)]
    shares: list[list[int]] = [[] for _ in range(processes)]
    loads = [(0, process) for process in range(processes)]
    for place in sorted(range(len(indices)), key=lambda place: -lengths[indices[place]]):
        tokens, process = heapq.heappop(loads)
        shares[process].append(place)
        heapq.heappush(loads, (tokens + int(lengths[indices[place]]), process))
    return [[indices[place] for place in sorted(share)] for share in shares]


class OrderedBatches(Sampler[list[int]]):
    """The micro-batches of one epoch for one process, from a given example on; `go_to` says which."""

    def __init__(self, lengths: Any, batch_size: int, *, seed: int, world: World) -> None:
        self._lengths, self._seed, self._world = lengths, seed, world
        self._size = batch_size * world.size
        self._epoch, self._start = 0, 0

    def go_to(self, epoch: int, example: int) -> None:
        """Choose the epoch, and how many examples of it are done."""
        self._epoch, self._start = epoch, example

    def __iter__(self) -> Iterator[list[int]]:
        order = epoch_order(len(self._lengths), self._seed, self._epoch)
        for first in range(self._start, len(order), self._size):
            batch = order[first : first + self._size]
            yield dealt(batch, self._lengths, self._world.size)[self._world.rank]

    def __len__(self) -> int:
        return max(0, -(-(len(self._lengths) - self._start) // self._size))


class RowBatches(Sampler[list[int]]):
    """The batches of a split in the order of its rows, of which each process takes its turn.

    Every process has as many; the last may be empty.
    """

    def __init__(self, examples: int, batch_size: int, world: World) -> None:
        self._examples, self._size, self._world = examples, batch_size, world

    def __iter__(self) -> Iterator[list[int]]:
        for turn in range(len(self)):
            first = (turn * self._world.size + self._world.rank) * self._size
            yield list(range(first, min(first + self._size, self._examples)))

    def __len__(self) -> int:
        return -(-self._examples // (self._size * self._world.size))
