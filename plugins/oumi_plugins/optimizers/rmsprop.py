"""RMSprop, of torch and of bitsandbytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from oumi_kernel import Component, Params, dump, hookimpl
from oumi_kernel.contracts import Run
from oumi_kernel.schema import NonNegativeFloat
from oumi_plugins.optimizers.unserved import NOT_IN_PARTS
from oumi_plugins.optimizers.without_effect import NOT_ADAM, NOT_SGD


class BitsAndBytesRmspropParams(Params):
    """Further parameters of RMSprop as bitsandbytes has it."""

    alpha: Annotated[float, Meta(gt=0, lt=1)] = 0.99
    """Decay of the average of squared gradients."""

    eps: NonNegativeFloat = 1e-8
    """What is added to the divisor."""


class RmspropParams(BitsAndBytesRmspropParams):
    """Further parameters of RMSprop."""

    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Share of the last update in the next one."""

    centered: bool = False
    """Whether to divide by the variance instead of the mean square."""


class Rmsprop(Component):
    """RMSprop, as torch.optim.RMSprop."""

    params_type = RmspropParams
    without_effect = NOT_ADAM | NOT_SGD

    @hookimpl
    def oumi_build_optimizer(self, params: RmspropParams, groups: Sequence[dict[str, Any]], run: Run) -> Any:
        """Return the optimizer."""
        import torch

        return torch.optim.RMSprop(groups, lr=run.config.training.learning_rate, **dump(params))


class Rmsprop32bit(Component):
    """RMSprop, as bitsandbytes.optim.RMSprop32bit."""

    params_type = BitsAndBytesRmspropParams
    requires = {"bitsandbytes": "oumi-kernel[quant]"}
    without_effect = NOT_ADAM | NOT_SGD
    unserved = NOT_IN_PARTS
    kind: ClassVar[str] = "RMSprop32bit"

    @hookimpl
    def oumi_build_optimizer(
        self, params: BitsAndBytesRmspropParams, groups: Sequence[dict[str, Any]], run: Run
    ) -> Any:
        """Return the optimizer."""
        from oumi_plugins.optimizers._bitsandbytes import build

        return build(self.kind, "RMSprop32bit", groups, {"lr": run.config.training.learning_rate, **dump(params)})


class Rmsprop8bit(Rmsprop32bit):
    """RMSprop with a state of 8 bits, as bitsandbytes.optim.RMSprop8bit."""

    kind = "RMSprop8bit"
