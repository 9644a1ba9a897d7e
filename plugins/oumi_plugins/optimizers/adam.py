"""Adam, with weight decay as part of the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oumi_kernel import Component, Params, hookimpl
from oumi_kernel.contracts import Run


class AdamParams(Params):
    """Further parameters of Adam."""

    amsgrad: bool = False
    """Whether to divide by the largest second moment so far (AMSGrad)."""


FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Devices on which torch does all of a step in one kernel, its fastest way."""


def has_fused_step(groups: Sequence[dict[str, Any]]) -> bool:
    """Return whether all parameters of groups of (name, tensor) lie where torch has a fused step."""
    return all(parameter.device.type in FUSED_DEVICES for group in groups for _, parameter in group["params"])


class Adam(Component):
    """Adam (arXiv 1412.6980), as torch.optim.Adam."""

    params_type = AdamParams
    without_effect = {"training.sgd_momentum": "it is for SGD."}

    @hookimpl
    def oumi_build_optimizer(self, params: AdamParams, groups: Sequence[dict[str, Any]], run: Run) -> Any:
        """Return the optimizer."""
        import torch

        training = run.config.training
        return torch.optim.Adam(
            groups,
            lr=training.learning_rate,
            betas=(training.adam_beta1, training.adam_beta2),
            eps=training.adam_epsilon,
            amsgrad=params.amsgrad,
            fused=has_fused_step(groups) or None,
        )
