"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from oumi_kernel import Component, ConfigError, Params, Problem, hookimpl
from oumi_kernel.contracts import Run
from oumi_kernel.schema import Fraction
from oumi_plugins.optimizers.without_effect import NOT_ADAM


class SgdParams(Params):
    """Further parameters of SGD."""

    nesterov: bool = False
    """Whether to look ahead along the momentum. Needs `training.sgd_momentum`."""

    dampening: Fraction = 0.0
    """Share of the new gradient that does not enter the momentum."""

    def check(self) -> Iterator[tuple[str, str]]:
        """Refuse what torch refuses."""
        if self.nesterov and self.dampening:
            yield "dampening", "must be 0 with nesterov."


class Sgd(Component):
    """Stochastic gradient descent with momentum, as torch.optim.SGD."""

    params_type = SgdParams
    without_effect = NOT_ADAM

    @hookimpl
    def oumi_build_optimizer(self, params: SgdParams, groups: Sequence[dict[str, Any]], run: Run) -> Any:
        """Return the optimizer."""
        import torch

        training = run.config.training
        if params.nesterov and not training.sgd_momentum:
            message = "nesterov needs a momentum; set training.sgd_momentum."
            raise ConfigError(Problem(code="rule", path="training.optimizer_kwargs.nesterov", message=message))
        return torch.optim.SGD(
            groups,
            lr=training.learning_rate,
            momentum=training.sgd_momentum,
            dampening=params.dampening,
            nesterov=params.nesterov,
        )
