"""Adafactor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import Meta

from oumi_kernel import Component, Params, hookimpl
from oumi_kernel.contracts import Run
from oumi_kernel.schema import PositiveFloat
from oumi_plugins.optimizers.unserved import NOT_IN_PARTS
from oumi_plugins.optimizers.without_effect import NOT_ADAM, NOT_SGD


class AdafactorParams(Params):
    """Further parameters of Adafactor."""

    clip_threshold: PositiveFloat = 1.0
    """Root mean square to which an update is clipped."""

    decay_rate: Annotated[float, Meta(ge=-1, le=0)] = -0.8
    """Exponent by which the decay of the second moment grows with steps."""


class Adafactor(Component):
    """Adafactor (arXiv 1804.04235) at the learning rate of the schedule, as transformers implements it."""

    params_type = AdafactorParams
    without_effect = NOT_ADAM | NOT_SGD
    unserved = NOT_IN_PARTS

    @hookimpl
    def oumi_build_optimizer(self, params: AdafactorParams, groups: Sequence[dict[str, Any]], run: Run) -> Any:
        """Return the optimizer."""
        from transformers import Adafactor as Implementation

        return Implementation(
            groups,
            lr=run.config.training.learning_rate,
            scale_parameter=False,
            relative_step=False,
            clip_threshold=params.clip_threshold,
            decay_rate=params.decay_rate,
        )
