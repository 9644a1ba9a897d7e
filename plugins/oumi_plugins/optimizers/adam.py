"""Adam, with weight decay as part of the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from oumi_kernel import Component, Params, hookimpl
from oumi_kernel.contracts import Run
from oumi_plugins.optimizers.without_effect import NOT_SGD

FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Devices on which torch does all of a step in one kernel, its fastest way."""


class AdamParams(Params):
    """Further parameters of Adam and AdamW."""

    amsgrad: bool = False
    """Whether to divide by the largest second moment so far (AMSGrad)."""

    implementation: Literal["fastest", "fused", "foreach", "single"] = "fastest"
    """How torch does a step: in one kernel (fused), all tensors at once (foreach) or one by one (single). The fastest
    is fused where the device has it, else torch's choice."""


def has_fused_step(groups: Sequence[dict[str, Any]]) -> bool:
    """Return whether all parameters of groups of (name, tensor) lie where torch has a fused step."""
    return all(parameter.device.type in FUSED_DEVICES for group in groups for _, parameter in group["params"])


def adam_settings(run: Run) -> dict[str, Any]:
    """Return the settings that every optimizer of Adam's kind takes from `training`."""
    training = run.config.training
    return {
        "lr": training.learning_rate,
        "betas": (training.adam_beta1, training.adam_beta2),
        "eps": training.adam_epsilon,
    }


def torch_settings(params: AdamParams, groups: Sequence[dict[str, Any]], run: Run) -> dict[str, Any]:
    """Return the arguments of torch's Adam and AdamW."""
    ways: dict[str, dict[str, Any]] = {
        "fastest": {"fused": has_fused_step(groups) or None},
        "fused": {"fused": True},
        "foreach": {"foreach": True},
        "single": {"foreach": False, "fused": False},
    }
    return adam_settings(run) | ways[params.implementation] | {"amsgrad": params.amsgrad}


class Adam(Component):
    """Adam (arXiv 1412.6980), as torch.optim.Adam."""

    params_type = AdamParams
    without_effect = NOT_SGD

    @hookimpl
    def oumi_build_optimizer(self, params: AdamParams, groups: Sequence[dict[str, Any]], run: Run) -> Any:
        """Return the optimizer."""
        import torch

        return torch.optim.Adam(groups, **torch_settings(params, groups, run))
