"""Schedule-free learning: an average of the weights in the place of a schedule that falls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import Meta

from oumi_kernel import Component, Params, hookimpl
from oumi_kernel.contracts import Run
from oumi_kernel.schema import NonNegativeFloat
from oumi_plugins.optimizers.adam import adam_settings
from oumi_plugins.optimizers.without_effect import NOT_ADAM, NOT_SGD


class ScheduleFreeParams(Params):
    """Parameters of schedule-free AdamW and RAdam."""

    r: NonNegativeFloat = 0.0
    """Power of the step by which it counts in the average."""

    weight_lr_power: NonNegativeFloat = 2.0
    """Power of the learning rate by which a step counts in the average, so that warm-up counts little."""


class ScheduleFreeSgdParams(ScheduleFreeParams):
    """Parameters of schedule-free SGD."""

    momentum: Annotated[float, Meta(gt=0, lt=1)] = 0.9
    """How near the weights that gradients are taken at are to the average."""


class ScheduleFreeAdamW(Component):
    """Schedule-free AdamW (arXiv 2405.15682), as schedulefree.AdamWScheduleFree.

    Set lr_scheduler_type constant, or constant_with_warmup. Evaluation, checkpoints and the final model have the
    averaged weights; a checkpoint holds those that training goes on from as well.
    """

    params_type = ScheduleFreeParams
    requires = {"schedulefree": "oumi-kernel[optimizers]"}
    without_effect = NOT_SGD

    @hookimpl
    def oumi_build_optimizer(self, params: ScheduleFreeParams, groups: Sequence[dict[str, Any]], run: Run) -> Any:
        """Return the optimizer."""
        from oumi_plugins.optimizers._schedule_free import AdamW, build

        return build(AdamW, groups, params, run, adam_settings(run))


class ScheduleFreeRAdam(Component):
    """Schedule-free RAdam, which warms up by itself, as schedulefree.RAdamScheduleFree. As schedule_free_adamw else."""

    params_type = ScheduleFreeParams
    requires = {"schedulefree": "oumi-kernel[optimizers]"}
    without_effect = NOT_SGD

    @hookimpl
    def oumi_build_optimizer(self, params: ScheduleFreeParams, groups: Sequence[dict[str, Any]], run: Run) -> Any:
        """Return the optimizer."""
        from oumi_plugins.optimizers._schedule_free import RAdam, build

        return build(RAdam, groups, params, run, adam_settings(run))


class ScheduleFreeSgd(Component):
    """Schedule-free SGD, as schedulefree.SGDScheduleFree. As schedule_free_adamw else."""

    params_type = ScheduleFreeSgdParams
    requires = {"schedulefree": "oumi-kernel[optimizers]"}
    without_effect = NOT_ADAM | NOT_SGD

    @hookimpl
    def oumi_build_optimizer(self, params: ScheduleFreeSgdParams, groups: Sequence[dict[str, Any]], run: Run) -> Any:
        """Return the optimizer."""
        from oumi_plugins.optimizers._schedule_free import Sgd, build

        return build(Sgd, groups, params, run, {"lr": run.config.training.learning_rate})
