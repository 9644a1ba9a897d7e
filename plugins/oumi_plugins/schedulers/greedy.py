"""Up while the evaluation loss falls, down when it does not."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from oumi_kernel import Component, Params, hookimpl
from oumi_kernel.contracts import Run
from oumi_kernel.schema import NonNegativeFloat, NonNegativeInt
from oumi_plugins.schedulers.needs_evaluation import NO_WARMUP, need_validation


class GreedyParams(Params):
    """Parameters of `greedy`."""

    factor: Annotated[float, Meta(gt=0, lt=1)] = 0.1
    """By which the learning rate is multiplied."""

    patience: NonNegativeInt = 10
    """Evaluations without progress that are waited for."""

    threshold: NonNegativeFloat = 1e-4
    """Relative fall of the loss that counts as progress."""

    cooldown: NonNegativeInt = 0
    """Evaluations after a reduction that are not counted."""

    min_lr: NonNegativeFloat = 0.0
    """The least learning rate."""


class Greedy(Component):
    """Raises the learning rate while the evaluation loss falls, else lowers it. Needs a validation split."""

    params_type = GreedyParams
    unserved = NO_WARMUP

    @hookimpl
    def oumi_build_scheduler(self, params: GreedyParams, optimizer: Any, total_steps: int, run: Run) -> Any:
        """Return the schedule."""
        from oumi_plugins.schedulers._transformers import OnEvaluation, build

        need_validation("greedy", run)
        return OnEvaluation(build("greedy", params, optimizer, total_steps, run))
