"""What all strategies of several processes have in common: they meet, add up, write once and leave together.

The loss of a process is its part of the step's sum, divided by the supervised tokens of all. So gradients must be
summed over processes, and how many tokens each has makes no difference.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from oumi_kernel import ConfigError, Problem
from oumi_kernel.contracts import Run
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


class SeveralStrategy(SingleStrategy):
    """How a process belongs to several (see `oumi_kernel.contracts.Strategy`)."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._world, self._is_rehearsal = run.world, run.rehearsal
        if self.device.type == "cuda":
            self.device = device_of(run.world, torch.cuda.device_count())
        self._group = Group(run.world, self.device, self._training.nccl_default_timeout_minutes)

    def setup(self) -> None:
        """Seed everything random. The processes meet in `prepare`, after the data is there."""
        super().setup()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def agree(self, facts: Mapping[str, str], folder: Path) -> None:
        """Show who is where, and refuse to train where the processes differ or share no folder."""
        if self._world.size > 1:
            preflight(self._group, self._world, self.device, facts, folder)

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
        return values if self._is_rehearsal or self._world.size == 1 else self._group.sum(values, what)

    def close(self) -> None:
        """Leave the other processes."""
        super().close()
        # Others fail as soon as this process leaves: one that fails says so first, and its end lets them go.
        if sys.exc_info()[0] is None:
            self._group.leave()

    def _differ_in_dropout(self) -> None:
        """Draw other random numbers than the other processes from here on."""
        torch.manual_seed(self._training.seed + self._world.rank)
