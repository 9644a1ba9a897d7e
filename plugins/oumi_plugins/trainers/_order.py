"""The order in which examples are seen: a pure function of (seed, epoch), so that resuming is arithmetic.

It is the same for any number of processes: those of one step of all processes are a slice of it, which is dealt to the
processes so that their tokens, not their examples, are even. Processes wait for each other once a step, so what counts
is the sum of a process over the micro-batches of a step.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from oumi_kernel.config import TrainingParams
from oumi_kernel.contracts import World
from oumi_kernel.plan import Balance

LOOKED_AT = 100_000
"""Examples of an epoch from which is told how even its steps are; to deal as many takes about half a second."""


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


def levelled(shares: list[list[int]], loads: list[int], lengths: Any) -> list[list[int]]:
    """Return the shares of a micro-batch in the order of the processes: the largest to whoever has the fewest tokens.

    No share is changed, so none needs more memory than it would without.

    Args:
        shares: One for each process.
        loads: Tokens that each process has of the step so far; brought up to date.
        lengths: Tokens of each example, by its index.
    """
    tokens = [sum(int(lengths[index]) for index in share) for share in shares]
    largest_first = sorted(range(len(shares)), key=lambda share: -tokens[share])
    fewest_first = sorted(range(len(loads)), key=lambda process: loads[process])
    placed: list[list[int]] = [[] for _ in shares]
    for process, share in zip(fewest_first, largest_first, strict=True):
        placed[process] = shares[share]
        loads[process] += tokens[share]
    return placed


class OrderedBatches(Sampler[list[int]]):
    """The micro-batches of one epoch for one process, from a given example on; `go_to` says which.

    Args:
        lengths: Tokens of each example, by its index.
        batch_size: Examples of a micro-batch, for each process.
        accumulation: Micro-batches of a step.
        seed: Seed of the order.
        world: Which process this is.
    """

    def __init__(self, lengths: Any, batch_size: int, accumulation: int = 1, *, seed: int, world: World) -> None:
        self._lengths, self._seed, self._world = lengths, seed, world
        self._size, self._accumulation = batch_size * world.size, accumulation
        self._epoch, self._start = 0, 0

    def go_to(self, epoch: int, example: int) -> None:
        """Choose the epoch, and how many examples of it are done, whole steps of them."""
        self._epoch, self._start = epoch, example

    def __iter__(self) -> Iterator[list[int]]:
        for shares in self.shares():
            yield shares[self._world.rank]

    def shares(self) -> Iterator[list[list[int]]]:
        """Yield the micro-batches of all processes, by their rank."""
        order, loads = epoch_order(len(self._lengths), self._seed, self._epoch), list[int]()
        for number, first in enumerate(range(self._start, len(order), self._size)):
            if number % self._accumulation == 0:
                loads = [0] * self._world.size
            batch = order[first : first + self._size]
            yield levelled(dealt(batch, self._lengths, self._world.size), loads, self._lengths)

    def __len__(self) -> int:
        return max(0, -(-(len(self._lengths) - self._start) // self._size))


def batches_of(lengths: Any, training: TrainingParams, world: World) -> OrderedBatches:
    """Return the micro-batches that a configuration asks for, at the start of the first epoch."""
    size, accumulation = training.per_device_train_batch_size, training.gradient_accumulation_steps
    return OrderedBatches(lengths, size, accumulation, seed=training.data_seed, world=world)


def balance_of(lengths: Any, training: TrainingParams, world: World) -> Balance:
    """Return how even the steps of the first epoch are, of its first 100,000 examples where there are more."""
    together = training.per_device_train_batch_size * world.size
    window = training.gradient_accumulation_steps
    dealt_out = itertools.islice(batches_of(lengths, training, world).shares(), -(-LOOKED_AT // together))
    loads = [[sum(int(lengths[index]) for index in share) for share in shares] for shares in dealt_out]
    order = np.array(epoch_order(len(lengths), training.data_seed, 0)[: len(loads) * together])
    in_turn = np.zeros(len(loads) * together, np.int64)
    in_turn[: len(order)] = np.asarray(lengths)[order]
    by_rows = in_turn.reshape(len(loads), -1, world.size).sum(1)
    return Balance(dealt=_busiest(np.array(loads), window), in_turn=_busiest(by_rows, window))


def _busiest(loads: Any, window: int) -> float:
    """Return the mean over steps of the tokens of the busiest process, divided by the mean of all.

    Args:
        loads: Tokens of each process in each micro-batch, (micro-batches, processes).
        window: Micro-batches of a step.
    """
    steps = np.add.reduceat(loads, np.arange(0, len(loads), window))
    return float((steps.max(1) / steps.mean(1)).mean())


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
