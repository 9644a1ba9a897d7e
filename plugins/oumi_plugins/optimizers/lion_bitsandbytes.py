"""Lion of bitsandbytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from oumi_kernel import Component, Params, hookimpl
from oumi_kernel.contracts import Run
from oumi_plugins.optimizers.unserved import NOT_IN_PARTS
from oumi_plugins.optimizers.without_effect import NOT_ADAM, NOT_SGD


class LionParams(Params):
    """Parameters of Lion."""

    beta1: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    """Share of the momentum in the direction of a step."""

    beta2: Annotated[float, Meta(ge=0, lt=1)] = 0.99
    """Decay of the momentum."""


class Lion32bit(Component):
    """Lion: steps along the sign of the momentum (arXiv 2302.06675), as bitsandbytes.optim.Lion32bit."""

    params_type = LionParams
    requires = {"bitsandbytes": "oumi-kernel[quant]"}
    without_effect = NOT_ADAM | NOT_SGD
    unserved = NOT_IN_PARTS
    kind: ClassVar[str] = "Lion32bit"
    whole: ClassVar[str] = "Lion32bit"

    @hookimpl
    def oumi_build_optimizer(self, params: LionParams, groups: Sequence[dict[str, Any]], run: Run) -> Any:
        """Return the optimizer."""
        from oumi_plugins.optimizers._bitsandbytes import build

        settings = {"lr": run.config.training.learning_rate, "betas": (params.beta1, params.beta2)}
        return build(self.kind, self.whole, groups, settings)


class Lion8bit(Lion32bit):
    """Lion with a state of 8 bits, as bitsandbytes.optim.Lion8bit; norms, biases and embeddings keep 32 bits."""

    kind = "Lion8bit"


class PagedLion32bit(Lion32bit):
    """Lion whose state moves to the host while the GPU is short of memory; on a CPU not paged."""

    kind, whole = "PagedLion32bit", "PagedLion32bit"


class PagedLion8bit(Lion32bit):
    """Lion with a state of 8 bits that moves to the host while the GPU is short of memory; on a CPU not paged."""

    kind, whole = "PagedLion8bit", "PagedLion32bit"
