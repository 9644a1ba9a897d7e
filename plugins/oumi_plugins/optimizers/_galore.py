"""GaLore's optimizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import galore_torch
from galore_torch.galore_projector import GaLoreProjector
from torch.optim import Optimizer

from oumi_plugins.optimizers._low_rank import keep_projectors, projected
from oumi_plugins.optimizers.galore import GaLoreParams


def adamw(params: GaLoreParams, groups: Sequence[dict[str, Any]], settings: Mapping[str, Any]) -> Optimizer:
    """Return GaLore's AdamW."""
    optimizer = galore_torch.GaLoreAdamW(cast(Any, projected(params, groups)), **settings, no_deprecation_warning=True)
    return keep_projectors(optimizer, _projector)


def adafactor(params: GaLoreParams, groups: Sequence[dict[str, Any]], settings: Mapping[str, Any]) -> Optimizer:
    """Return GaLore's Adafactor, at the learning rate of the schedule."""
    fixed = {"scale_parameter": False, "relative_step": False}
    optimizer = galore_torch.GaLoreAdafactor(projected(params, groups), **settings, **fixed)
    return keep_projectors(optimizer, _projector)


def _projector(group: Mapping[str, Any]) -> Any:
    return GaLoreProjector(group["rank"])
