"""Down when the evaluation loss no longer falls."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from oumi_kernel import Component, Params, hookimpl
from oumi_kernel.contracts import Run
from oumi_kernel.schema import NonNegativeFloat, NonNegativeInt
from oumi_plugins.schedulers.needs_evaluation import NO_WARMUP, need_validation


class PlateauParams(Params):
    """Parameters of `reduce_lr_on_plateau` and `greedy`."""

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


class ReduceLrOnPlateau(Component):
    """Reduces the learning rate when the evaluation loss no longer falls. Needs a validation split."""

    params_type = PlateauParams
    unserved = NO_WARMUP

    @hookimpl
    def oumi_build_scheduler(self, params: PlateauParams, optimizer: Any, total_steps: int, run: Run) -> Any:
        """Return the schedule."""
        from oumi_plugins.schedulers._transformers import OnEvaluation, build

        need_validation("reduce_lr_on_plateau", run)
        return OnEvaluation(build("reduce_lr_on_plateau", params, optimizer, total_steps, run))
