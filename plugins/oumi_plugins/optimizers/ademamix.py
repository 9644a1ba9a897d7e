"""AdEMAMix of bitsandbytes."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from oumi_kernel import Component, ConfigError, Params, Problem, hookimpl
from oumi_kernel.contracts import Run
from oumi_kernel.schema import NonNegativeFloat, PositiveInt
from oumi_plugins.optimizers.adam import adam_settings
from oumi_plugins.optimizers.unserved import NOT_IN_PARTS
from oumi_plugins.optimizers.without_effect import NOT_SGD


class AdEMAMixParams(Params):
    """Further parameters of AdEMAMix."""

    beta3: Annotated[float, Meta(ge=0, lt=1)] = 0.9999
    """Decay of the slow average of the gradient."""

    alpha: NonNegativeFloat = 5.0
    """Weight of the slow average."""

    t_alpha: PositiveInt | None = None
    """Steps over which `alpha` grows to its value. Null: none."""

    t_beta3: PositiveInt | None = None
    """Steps over which `beta3` grows to its value. Null: none."""


class AdEMAMix(Component):
    """AdEMAMix: Adam with a second, slow average (arXiv 2409.03137), as bitsandbytes.optim.AdEMAMix."""

    params_type = AdEMAMixParams
    requires = {"bitsandbytes": "oumi-kernel[quant]"}
    without_effect = NOT_SGD
    unserved = NOT_IN_PARTS
    kind: ClassVar[str] = "AdEMAMix"
    whole: ClassVar[str] = "AdEMAMix"

    @hookimpl
    def oumi_build_optimizer(self, params: AdEMAMixParams, groups: Sequence[dict[str, Any]], run: Run) -> Any:
        """Return the optimizer."""
        from oumi_plugins.optimizers._bitsandbytes import build

        adam = adam_settings(run)
        own = {"alpha": params.alpha, "t_alpha": params.t_alpha, "t_beta3": params.t_beta3}
        return build(self.kind, self.whole, groups, adam | own | {"betas": (*adam["betas"], params.beta3)})


class AdEMAMix8bit(AdEMAMix):
    """AdEMAMix with a state of 8 bits; norms, biases and embeddings keep 32 bits."""

    kind = "AdEMAMix8bit"


class PagedAdEMAMix(AdEMAMix):
    """AdEMAMix whose state moves to the host while the GPU is short of memory; needs a GPU."""

    kind, whole = "PagedAdEMAMix", "PagedAdEMAMix"
    nearest: ClassVar[str] = "ademamix"

    @hookimpl(wrapper=True)
    def oumi_build_strategy(self) -> Generator[None, Any, Any]:
        """Refuse a CPU before anything is loaded: unlike others that are paged, this one has no way around it.

        Raises:
            ConfigError: There is no GPU.
        """
        import torch

        if not torch.cuda.is_available():
            message = "a paged AdEMAMix needs a GPU; this machine has none."
            hint = f"Use {self.nearest}."
            raise ConfigError(Problem(code="not-served", path="training.optimizer", message=message, hint=hint))
        return (yield)


class PagedAdEMAMix8bit(PagedAdEMAMix):
    """AdEMAMix with a state of 8 bits that moves to the host while the GPU is short of memory; needs a GPU."""

    kind, whole = "PagedAdEMAMix8bit", "PagedAdEMAMix"
    nearest = "ademamix_8bit"
