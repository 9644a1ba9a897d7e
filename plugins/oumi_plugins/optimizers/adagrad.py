"""Adagrad."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oumi_kernel import Component, Params, dump, hookimpl
from oumi_kernel.contracts import Run
from oumi_kernel.schema import NonNegativeFloat
from oumi_plugins.optimizers.without_effect import NOT_ADAM, NOT_SGD


class AdagradParams(Params):
    """Further parameters of Adagrad."""

    lr_decay: NonNegativeFloat = 0.0
    """By how much the learning rate falls with steps, beside the schedule: to 1 / (1 + steps * lr_decay)."""

    initial_accumulator_value: NonNegativeFloat = 0.0
    """Where the sums of squared gradients begin."""

    eps: NonNegativeFloat = 1e-10
    """What is added to the divisor."""


class Adagrad(Component):
    """Adagrad (Duchi et al. 2011), as torch.optim.Adagrad."""

    params_type = AdagradParams
    without_effect = NOT_ADAM | NOT_SGD

    @hookimpl
    def oumi_build_optimizer(self, params: AdagradParams, groups: Sequence[dict[str, Any]], run: Run) -> Any:
        """Return the optimizer."""
        import torch

        return torch.optim.Adagrad(groups, lr=run.config.training.learning_rate, **dump(params))
