"""APOLLO's optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import apollo_torch
from apollo_torch.random_projector import GradientProjector
from apollo_torch.svd_projector import GaLoreProjector
from torch.optim import Optimizer

from oumi_plugins.optimizers._low_rank import Compact, keep_projectors, projected
from oumi_plugins.optimizers.apollo import ApolloParams


class _SvdProjector(Compact, GaLoreProjector):
    """Projects by singular vectors."""


def adamw(params: ApolloParams, groups: Sequence[dict[str, Any]], settings: Mapping[str, Any]) -> Optimizer:
    """Return APOLLO's AdamW."""
    return keep_projectors(apollo_torch.APOLLOAdamW(cast(Any, projected(params, groups)), **settings), _projector)


def _projector(group: Mapping[str, Any], state: Mapping[str, Any]) -> Any:
    settings = {key: group[key] for key in ("update_proj_gap", "scale", "proj_type")}
    if group["proj"] == "svd":
        return _SvdProjector(group["rank"], **settings)
    return GradientProjector(group["rank"], **settings, seed=state["seed"])
