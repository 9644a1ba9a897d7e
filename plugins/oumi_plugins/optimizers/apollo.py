"""APOLLO: AdamW's learning rates, estimated in a small random subspace of each gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from oumi_kernel import Component, hookimpl
from oumi_kernel.contracts import Run
from oumi_kernel.schema import PositiveFloat
from oumi_plugins.optimizers.adam import adam_settings
from oumi_plugins.optimizers.galore import LowRankParams
from oumi_plugins.optimizers.unserved import NOT_IN_PARTS
from oumi_plugins.optimizers.without_effect import NOT_SGD


class ApolloParams(LowRankParams):
    """Parameters of APOLLO. APOLLO-Mini is rank 1, scale_type tensor and scale 128."""

    proj: Literal["random", "svd"] = "random"
    """How a subspace is chosen: by chance, or by the gradient's largest singular values."""

    scale_type: Literal["channel", "tensor"] = "channel"
    """Whether each row or column of a matrix has a learning rate of its own, or the whole matrix one."""

    scale: PositiveFloat = 1.0
    """By whose square root updates are multiplied."""


class ApolloAdamW(Component):
    """APOLLO (arXiv 2412.05270), as apollo_torch.APOLLOAdamW."""

    params_type = ApolloParams
    requires = {"apollo_torch": "oumi-kernel[optimizers]", "bitsandbytes": "oumi-kernel[quant]"}
    without_effect = NOT_SGD
    unserved = NOT_IN_PARTS

    @hookimpl
    def oumi_build_optimizer(self, params: ApolloParams, groups: Sequence[dict[str, Any]], run: Run) -> Any:
        """Return the optimizer.

        Raises:
            ConfigError: A pattern of `target_modules` matches nothing, or no matrix is projected.
        """
        from oumi_plugins.optimizers._apollo import adamw

        return adamw(params, groups, adam_settings(run))
