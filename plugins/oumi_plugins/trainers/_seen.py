"""What a metric sees of a batch, of one process or of all."""

from __future__ import annotations

from typing import Any

import msgspec
import torch

from oumi_kernel.contracts import Session


class Seen(msgspec.Struct):
    """What a metric sees of a batch (see `oumi_kernel.contracts.EvaluationBatch`)."""

    losses: torch.Tensor
    predictions: torch.Tensor
    labels: torch.Tensor


def gathered(seen: Seen, session: Session) -> Seen:
    """Return what all processes see of their batches, in the order of their ranks, to all of them."""
    world, reduce_sum = session.run.world, session.strategy.reduce_sum
    if world.size == 1:
        return seen
    counts = torch.zeros(world.size, dtype=torch.int64)
    counts[world.rank] = len(seen.labels)
    counts = reduce_sum(counts, "the sizes of an evaluation's batches").tolist()
    first = sum(counts[: world.rank])

    def everywhere(mine: torch.Tensor) -> Any:
        whole = mine.new_zeros(sum(counts))
        whole[first : first + len(mine)] = mine
        return reduce_sum(whole, "what the metrics see")

    return Seen(everywhere(seen.losses), everywhere(seen.predictions), everywhere(seen.labels))
