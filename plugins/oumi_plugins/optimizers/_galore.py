"""GaLore's optimizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import galore_torch
from galore_torch.galore_projector import GaLoreProjector
from torch.optim import Optimizer

from oumi_plugins.optimizers._low_rank import Compact, keep_projectors, projected
from oumi_plugins.optimizers.galore import GaLoreParams


class _Projector(Compact, GaLoreProjector):
    """Projects by singular vectors."""


def adamw(params: GaLoreParams, groups: Sequence[dict[str, Any]], settings: Mapping[str, Any]) -> Optimizer:
    """Return GaLore's AdamW."""
    given = cast(Any, projected(params, groups))
    return keep_projectors(galore_torch.GaLoreAdamW(given, **settings, no_deprecation_warning=True), _projector)


def adafactor(params: GaLoreParams, groups: Sequence[dict[str, Any]], settings: Mapping[str, Any]) -> Optimizer:
    """Return GaLore's Adafactor, at the learning rate of the schedule."""
    fixed = {"scale_parameter": False, "relative_step": False}
    return keep_projectors(galore_torch.GaLoreAdafactor(projected(params, groups), **settings, **fixed), _projector)


def _projector(group: Mapping[str, Any], state: Mapping[str, Any]) -> Any:
    settings = {key: group[key] for key in ("update_proj_gap", "scale", "proj_type")}
    return _Projector(group["rank"], **settings)
