"""APOLLO's optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import apollo_torch
from apollo_torch.random_projector import GradientProjector
from apollo_torch.svd_projector import GaLoreProjector
from torch.optim import Optimizer

from oumi_plugins.optimizers._low_rank import keep_projectors, projected
from oumi_plugins.optimizers.apollo import ApolloParams


def adamw(params: ApolloParams, groups: Sequence[dict[str, Any]], settings: Mapping[str, Any]) -> Optimizer:
    """Return APOLLO's AdamW."""
    return keep_projectors(apollo_torch.APOLLOAdamW(cast(Any, projected(params, groups)), **settings), _projector)


def _projector(group: Mapping[str, Any]) -> Any:
    kind = GradientProjector if group["proj"] == "random" else GaLoreProjector
    return kind(group["rank"])
