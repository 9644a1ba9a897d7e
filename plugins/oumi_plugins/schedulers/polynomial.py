"""Along a power of the steps that are left."""

from __future__ import annotations

from typing import Any

from oumi_kernel import Component, ConfigError, Params, Problem, hookimpl
from oumi_kernel.config.derived import warmup_steps
from oumi_kernel.contracts import Run
from oumi_kernel.schema import NonNegativeFloat, PositiveFloat


class PolynomialParams(Params):
    """Parameters of `polynomial`."""

    lr_end: NonNegativeFloat = 1e-7
    """The learning rate at the end; must be below `training.learning_rate`."""

    power: PositiveFloat = 1.0
    """The power; 1 is a straight line."""


class Polynomial(Component):
    """Rises over the warm-up, then falls along a power."""

    params_type = PolynomialParams

    @hookimpl
    def oumi_build_scheduler(self, params: PolynomialParams, optimizer: Any, total_steps: int, run: Run) -> Any:
        """Return the schedule.

        Raises:
            ConfigError: The warm-up leaves no steps to fall.
        """
        from oumi_plugins.schedulers._transformers import build

        warmup = warmup_steps(run.config.training, total_steps)
        if warmup >= total_steps:
            message = f"polynomial: {warmup} steps of warm-up leave none of the run's {total_steps} to fall."
            raise ConfigError(Problem(code="rule", path="training.lr_scheduler_type", message=message))
        return build("polynomial", params, optimizer, total_steps, run)
