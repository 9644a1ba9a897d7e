"""How examples are dealt to processes: each step is even in tokens, and how even is told as it is."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oumi_kernel.contracts import World
from oumi_kernel.loading import load_text
from oumi_plugins.trainers import _order
from oumi_plugins.trainers._order import OrderedBatches, balance_of, dealt, epoch_order
from tests.conftest import minimal_yaml

LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=60)


def loads(shares: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[int]:
    return [sum(lengths[index] for index in share) for share in shares]


@given(LENGTHS, st.integers(1, 5), st.integers(1, 3), st.integers(1, 4))
def test_a_step_is_as_even_as_its_least_even_micro_batch(
    lengths: list[int], processes: int, size: int, accumulation: int
) -> None:
    """The sums of a step count, as processes wait for each other once a step; no share is larger than it would be."""
    batches = OrderedBatches(lengths, size, accumulation, seed=3, world=World(size=processes))
    every, order, together = list(batches.shares()), epoch_order(len(lengths), 3, 0), size * processes
    for first in range(0, len(every), accumulation):
        step = every[first : first + accumulation]
        gaps: list[int] = []
        for number, shares in enumerate(step, first):
            expected = dealt(order[number * together :][:together], lengths, processes)
            assert sorted(shares) == sorted(expected)
            gaps.append(max(loads(shares, lengths)) - min(loads(shares, lengths)))
        sums = [sum(tokens) for tokens in zip(*(loads(shares, lengths) for shares in step), strict=True)]
        assert max(sums) - min(sums) <= max(gaps)


def test_an_epoch_that_goes_on_after_a_step_deals_as_if_it_had_not_stopped() -> None:
    generator = random.Random(5)
    lengths = [generator.randrange(1, 100) for _ in range(50)]
    whole, left = (OrderedBatches(lengths, 2, 3, seed=1, world=World(rank=1, size=2)) for _ in range(2))
    left.go_to(0, 24)
    assert list(left) == list(whole)[6:]


@pytest.mark.parametrize("looked_at", [100_000, 200])
def test_the_balance_is_that_of_the_steps_of_an_epoch(looked_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_order, "LOOKED_AT", looked_at)
    generator = random.Random(1)
    lengths = [int(math.exp(generator.gauss(5, 1))) for _ in range(403)]
    settings = "  per_device_train_batch_size: 2\n  gradient_accumulation_steps: 3\n  data_seed: 9\n"
    training = load_text(minimal_yaml(training=settings), "c").config.training
    found = balance_of(lengths, training, World(rank=3, size=4))

    seen = epoch_order(403, 9, 0)[:looked_at]
    shares = list(OrderedBatches(lengths, 2, 3, seed=9, world=World(size=4)).shares())[: -(-len(seen) // 8)]
    in_turn = [_in_turn(seen[first:][:8]) for first in range(0, len(seen), 8)]
    for ours, each in ((found.dealt, shares), (found.in_turn, in_turn)):
        steps: list[float] = []
        for first in range(0, len(each), 3):
            sums = [sum(tokens) for tokens in zip(*(loads(one, lengths) for one in each[first:][:3]), strict=True)]
            steps.append(max(sums) / (sum(sums) / 4))
        assert ours == pytest.approx(sum(steps) / len(steps))
    assert 1 < found.dealt < 1 + (found.in_turn - 1) * 0.6


def _in_turn(batch: list[int]) -> list[list[int]]:
    return [batch[process::4] for process in range(4)]
