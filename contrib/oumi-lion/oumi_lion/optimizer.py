"""The component: parameters, and the hook that builds the optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import Meta

from oumi_kernel import Component, Params, hookimpl
from oumi_kernel.contracts import Run


class LionParams(Params):
    """Parameters of Lion."""

    beta1: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    """Share of the momentum in the direction of a step."""

    beta2: Annotated[float, Meta(ge=0, lt=1)] = 0.99
    """Decay of the momentum."""


class Lion(Component):
    """Lion: steps along the sign of the momentum (arXiv 2302.06675)."""

    params_type = LionParams

    @hookimpl
    def oumi_build_optimizer(self, params: LionParams, groups: Sequence[dict[str, Any]], run: Run) -> Any:
        """Return the optimizer."""
        from oumi_lion._lion import LionOptimizer

        return LionOptimizer(groups, lr=run.config.training.learning_rate, betas=(params.beta1, params.beta2))
