"""Up, level, down."""

from __future__ import annotations

from typing import Any, Literal

from oumi_kernel import Component, ConfigError, Params, Problem, hookimpl
from oumi_kernel.config.derived import warmup_steps
from oumi_kernel.contracts import Run
from oumi_kernel.schema import Fraction, NonNegativeInt, PositiveFloat, PositiveInt


class WarmupStableDecayParams(Params):
    """Parameters of `warmup_stable_decay`."""

    num_decay_steps: PositiveInt
    """Steps over which the learning rate falls at the end. Required."""

    num_stable_steps: NonNegativeInt | None = None
    """Steps at the highest learning rate. Null: all that are left."""

    warmup_type: Literal["linear", "cosine", "1-sqrt"] = "linear"
    """The form of the rise."""

    decay_type: Literal["linear", "cosine", "1-sqrt"] = "cosine"
    """The form of the fall."""

    min_lr_ratio: Fraction = 0.0
    """The learning rate at the end, as a share of the highest."""

    num_cycles: PositiveFloat = 0.5
    """Waves of a cosine form."""


class WarmupStableDecay(Component):
    """Rises, stays at the highest learning rate, then falls."""

    params_type = WarmupStableDecayParams

    @hookimpl
    def oumi_build_scheduler(self, params: WarmupStableDecayParams, optimizer: Any, total_steps: int, run: Run) -> Any:
        """Return the schedule.

        Raises:
            ConfigError: The run is too short for its warm-up and its fall.
        """
        from oumi_plugins.schedulers._transformers import build

        warmup, stable, decay = (
            warmup_steps(run.config.training, total_steps),
            params.num_stable_steps or 0,
            params.num_decay_steps,
        )
        if warmup + stable + decay > total_steps:
            message = (
                f"{warmup} steps of warm-up, {stable} level and {decay} of fall are more than the run's {total_steps}."
            )
            raise ConfigError(Problem(code="rule", path="training.lr_scheduler_kwargs", message=message))
        return build("warmup_stable_decay", params, optimizer, total_steps, run)
