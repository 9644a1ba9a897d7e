"""Muon and AdamW as one optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from oumi_kernel import ConfigError, Problem
from oumi_kernel.contracts import Run
from oumi_plugins.optimizers._matrices import divided
from oumi_plugins.optimizers._paired import paired
from oumi_plugins.optimizers.adam import AdamParams, torch_settings
from oumi_plugins.optimizers.muon import MuonParams


def build(params: MuonParams, groups: Sequence[dict[str, Any]], run: Run) -> Optimizer:
    """Return the pair; Muon alone where matrices are all that trains.

    Raises:
        ConfigError: No matrix trains.
    """
    matrices, rest = divided(groups, lambda name, tensor: True)
    if not matrices:
        message = "muon is for matrices within the model, and none of them trains."
        hint = "Use adamw, or train more of the model."
        raise ConfigError(Problem(code="not-served", path="training.optimizer", message=message, hint=hint))
    muon = torch.optim.Muon(
        matrices,
        lr=run.config.training.learning_rate,
        momentum=params.momentum,
        nesterov=params.nesterov,
        ns_steps=params.ns_steps,
        adjust_lr_fn=params.adjust_lr_fn,
    )
    if not rest:
        return muon
    settings = torch_settings(AdamParams(), rest, run)
    settings["lr"] = params.adamw_learning_rate or settings["lr"]
    return paired([muon, torch.optim.AdamW(rest, **settings)])
