"""GaLore: Adam in a subspace of each gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from oumi_kernel import Component, Params, hookimpl
from oumi_kernel.contracts import Run
from oumi_kernel.schema import PositiveFloat, PositiveInt
from oumi_plugins.optimizers.adam import adam_settings
from oumi_plugins.optimizers.unserved import NOT_IN_PARTS
from oumi_plugins.optimizers.without_effect import NOT_ADAM, NOT_SGD


class LowRankParams(Params):
    """What GaLore and APOLLO have in common."""

    rank: PositiveInt = 128
    """Dimensions of the subspace; of use where it is well below both sides of the matrices."""

    update_proj_gap: PositiveInt = 200
    """Steps after which the subspace is chosen anew."""

    proj_type: Literal["std", "reverse_std", "right", "left"] = "std"
    """Which side of a matrix is projected: the shorter one (std), the longer one, or always the same."""

    target_modules: list[str] | None = None
    """Names of modules, or parts of names between dots, whose matrices are projected. Null: all matrices within the
    model, without embeddings and head."""


class GaLoreParams(LowRankParams):
    """Parameters of GaLore."""

    scale: PositiveFloat = 0.25
    """By which updates in the subspace are multiplied."""


class GaLoreAdamW(Component):
    """GaLore: AdamW on projected gradients (arXiv 2403.03507), as galore_torch.GaLoreAdamW."""

    params_type = GaLoreParams
    requires = {"galore_torch": "oumi-kernel[optimizers]", "bitsandbytes": "oumi-kernel[quant]"}
    without_effect = NOT_SGD
    unserved = NOT_IN_PARTS

    @hookimpl
    def oumi_build_optimizer(self, params: GaLoreParams, groups: Sequence[dict[str, Any]], run: Run) -> Any:
        """Return the optimizer.

        Raises:
            ConfigError: A pattern of `target_modules` matches nothing, or no matrix is projected.
        """
        from oumi_plugins.optimizers._galore import adamw

        return adamw(params, groups, adam_settings(run))


class GaLoreAdafactor(Component):
    """GaLore: Adafactor on projected gradients (arXiv 2403.03507), as galore_torch.GaLoreAdafactor."""

    params_type = GaLoreParams
    requires = {"galore_torch": "oumi-kernel[optimizers]", "bitsandbytes": "oumi-kernel[quant]"}
    without_effect = NOT_ADAM | NOT_SGD
    unserved = NOT_IN_PARTS

    @hookimpl
    def oumi_build_optimizer(self, params: GaLoreParams, groups: Sequence[dict[str, Any]], run: Run) -> Any:
        """Return the optimizer.

        Raises:
            ConfigError: A pattern of `target_modules` matches nothing, or no matrix is projected.
        """
        from oumi_plugins.optimizers._galore import adafactor

        return adafactor(params, groups, {"lr": run.config.training.learning_rate})
