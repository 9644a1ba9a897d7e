"""Schedules as transformers builds them."""

from __future__ import annotations

from typing import Any

from transformers import get_scheduler

from oumi_kernel import ConfigError, Problem, dump
from oumi_kernel.config.derived import warmup_steps
from oumi_kernel.contracts import Run
from oumi_kernel.schema import Params


class OnEvaluation:
    """A schedule that moves when the evaluation loss is known, and stays between."""

    def __init__(self, schedule: Any) -> None:
        self._schedule = schedule

    def step(self) -> None:
        """Do nothing: an optimizer step is no reason to move."""

    def observe(self, loss: float) -> None:
        """Take in the loss of an evaluation."""
        self._schedule.step(loss)

    def get_last_lr(self) -> list[float]:
        """Return the learning rate of each group."""
        return [group["lr"] for group in self._schedule.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the schedule's state."""
        return self._schedule.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the schedule's state."""
        self._schedule.load_state_dict(state)


def build(name: str, params: Params, optimizer: Any, total_steps: int, run: Run) -> Any:
    """Return the schedule of that name with the warm-up of the configuration.

    Raises:
        ConfigError: The schedule refuses its parameters.
    """
    given = {key: value for key, value in dump(params).items() if value is not None}
    warmup = warmup_steps(run.config.training, total_steps)
    try:
        return get_scheduler(name, optimizer, warmup, total_steps, given)
    except (ValueError, ZeroDivisionError) as error:
        # What only the schedule itself can judge, such as an end above the beginning.
        path = "training.lr_scheduler_kwargs"
        reason = "a learning_rate of 0 has no shares" if isinstance(error, ZeroDivisionError) else error
        raise ConfigError(Problem(code="rule", path=path, message=f"{name}: {reason}.")) from error
