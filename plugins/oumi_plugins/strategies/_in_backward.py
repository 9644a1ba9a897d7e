"""Optimizer steps inside the backward pass: a weight is stepped once its gradient is complete, which is freed."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from oumi_plugins.strategies._stepping import step_unless


class InBackward:
    """Steps an optimizer one parameter at a time, from torch's hook after a gradient is accumulated.

    The optimizer stays one object with one state, so checkpoints and schedules do not know of this: for each step its
    groups are replaced by one with one parameter. What an optimizer counts in a group counts once a step.

    Whether a gradient is finite is known one parameter at a time too. From the first one that is not, or after a loss
    that is not, nothing is stepped any more.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._norms: list[torch.Tensor] = []
        self._settings: dict[int, dict[str, Any]] = {}
        self._bad: torch.Tensor | None = None
        for index, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(functools.partial(self._step, index))

    def begin(self, loss: torch.Tensor) -> None:
        """Get to know the loss of the step that begins."""
        bad = ~torch.isfinite(loss.detach())
        self._bad = bad if self._bad is None else self._bad | bad

    def end(self) -> torch.Tensor:
        """Return the norm of the gradient, not finite where a parameter was not stepped."""
        for index, settings in self._settings.items():
            self._optimizer.param_groups[index].update(settings)
        norm = torch.linalg.vector_norm(torch.stack(self._norms)) if self._norms else torch.zeros(())
        self._norms, self._settings = [], {}
        return norm if self._bad is None else norm.masked_fill(self._bad, math.nan)

    def _step(self, index: int, parameter: torch.Tensor) -> None:
        norm = torch.linalg.vector_norm(parameter.grad)  # pyright: ignore[reportArgumentType] - it was just accumulated
        self._norms.append(norm)
        bad = ~torch.isfinite(norm)
        self._bad = bad if self._bad is None else self._bad | bad
        groups = self._optimizer.param_groups
        alone = {**groups[index], "params": [parameter]}
        self._optimizer.param_groups = [alone]
        try:
            step_unless(self._bad, self._optimizer)
        finally:
            self._optimizer.param_groups = groups
        parameter.grad = None
        self._settings[index] = {name: value for name, value in alone.items() if name != "params"}
