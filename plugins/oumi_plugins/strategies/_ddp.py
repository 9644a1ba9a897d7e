"""One step by several processes, each with a copy of the model; DDP's average over them is made a sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from oumi_kernel.contracts import Prepared, Run
from oumi_kernel.rehearsal import Division
from oumi_plugins.strategies._division import replicated, sizes_of
from oumi_plugins.strategies._several import Computation, SeveralStrategy


class DdpStrategy(SeveralStrategy):
    """How a step is done by several processes (see `oumi_kernel.contracts.Strategy`)."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._replica: DistributedDataParallel | None = None

    def prepare(self, model: Any, build: Callable[[Any], tuple[Any, Any]]) -> Prepared:
        """Meet the other processes, and give each the model of the first."""
        prepared = super().prepare(model, build)
        if self._is_rehearsal:
            return prepared
        self._group.meet()
        self._replica = DistributedDataParallel(
            Computation(model),
            find_unused_parameters=bool(self._training.ddp_find_unused_parameters),
            bucket_cap_mb=self._training.trainer_kwargs.get("ddp_bucket_cap_mb"),
            broadcast_buffers=False,  # every process has made the same ones
            gradient_as_bucket_view=True,
        )
        self._differ_in_dropout()
        return prepared

    def division(self, model: Any) -> Division:
        """Return that each process has all of the model, and that gradients are summed."""
        (whole,) = sizes_of(model)
        return replicated(whole, self._world)

    def compute(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a function of the model returns, so that its backward pass exchanges gradients."""
        assert self._replica is not None  # noqa: S101 - a dry run computes nothing
        return self._replica(function, *arguments) if torch.is_grad_enabled() else function(*arguments)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of the loss to the sum over processes, which DDP divides by their number."""
        with self._group.exchange("the gradients"):
            super().backward(loss * self._world.size)

    def backward_context(self, *, last: bool) -> AbstractContextManager[Any]:
        """Return a context in which gradients stay here, but for the last micro-batch."""
        assert self._replica is not None  # noqa: S101 - a dry run computes nothing
        return nullcontext() if last else self._replica.no_sync()

    def full_state(self, model: Any, *, trained: bool) -> Mapping[str, Any] | None:
        """Return the model's weights on the first process."""
        return super().full_state(model, trained=trained) if self._world.is_main else None

    def save(self, directory: Path) -> None:
        """Write the state of optimizer and schedule, which is the same in every process, once."""
        if self._world.is_main:
            super().save(directory)
