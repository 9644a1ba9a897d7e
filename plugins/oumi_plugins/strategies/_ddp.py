"""One step by several processes, each with a copy of the model.

The loss of a process is its part of the step's sum, divided by the supervised tokens of all. So gradients must be
summed over processes, not averaged as DDP does, and how many tokens each has makes no difference.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from oumi_kernel import ConfigError, Problem
from oumi_kernel.contracts import Prepared, Run
from oumi_kernel.launch import is_worker
from oumi_kernel.rehearsal import Division
from oumi_plugins.strategies._division import replicated, sizes_of
from oumi_plugins.strategies._group import Group, device_of
from oumi_plugins.strategies._preflight import preflight
from oumi_plugins.strategies._single import SingleStrategy


class Computation(nn.Module):
    """Calls a function of a model, so that what a wrapper does around `forward` happens around any such function."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what `function` returns for `arguments`."""
        return function(*arguments)


class DdpStrategy(SingleStrategy):
    """How a step is done by several processes (see `oumi_kernel.contracts.Strategy`)."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._world = run.world
        if self.device.type == "cuda":
            self.device = device_of(run.world, torch.cuda.device_count())
        self._group = Group(run.world, self.device, self._training.nccl_default_timeout_minutes)
        self._replica: DistributedDataParallel | None = None

    def setup(self) -> None:
        """Seed everything random. The processes meet in `prepare`, after the data is there."""
        super().setup()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def agree(self, facts: Mapping[str, str], folder: Path) -> None:
        """Show who is where, and refuse to train where the processes differ or share no folder."""
        preflight(self._group, self._world, self.device, facts, folder)

    def prepare(self, model: Any, build: Callable[[Any], tuple[Any, Any]]) -> Prepared:
        """Meet the other processes, and give each the model of the first."""
        prepared = super().prepare(model, build)
        if not is_worker():  # a dry run: there is nobody to meet
            return prepared
        self._group.meet()
        self._replica = DistributedDataParallel(
            Computation(model),
            find_unused_parameters=bool(self._training.ddp_find_unused_parameters),
            bucket_cap_mb=self._training.trainer_kwargs.get("ddp_bucket_cap_mb"),
            broadcast_buffers=False,  # every process has made the same ones
            gradient_as_bucket_view=True,
        )
        torch.manual_seed(self._training.seed + self._world.rank)  # dropout differs between processes
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

    def step_in_backward(self) -> None:
        """Refuse to: a gradient is whole only when all processes have added theirs.

        Raises:
            ConfigError: Always.
        """
        path = "training.trainer_kwargs.optimizer_in_backward"
        message = "in several processes a gradient is whole only after the backward pass."
        hint = "Leave it out, or train in one process."
        raise ConfigError(Problem(code="not-served", path=path, message=message, hint=hint))

    def reduce_sum(self, values: torch.Tensor, what: str = "a sum") -> torch.Tensor:
        """Return the sum over all processes."""
        return values if self._replica is None else self._group.sum(values, what)

    def full_state(self, model: Any) -> Mapping[str, Any] | None:
        """Return the model's weights on the first process."""
        return super().full_state(model) if self._world.is_main else None

    def save(self, directory: Path) -> None:
        """Write the state of optimizer and schedule, which is the same in every process, once."""
        if self._world.is_main:
            super().save(directory)

    def close(self) -> None:
        """Leave the other processes."""
        super().close()
        # Others fail as soon as this process leaves: one that fails says so first, and its end lets them go.
        if sys.exc_info()[0] is None:
            self._group.leave()
