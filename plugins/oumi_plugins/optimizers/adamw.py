"""AdamW."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oumi_kernel import Component, hookimpl
from oumi_kernel.contracts import Run
from oumi_plugins.optimizers.adam import AdamParams, torch_settings
from oumi_plugins.optimizers.without_effect import NOT_SGD


class AdamW(Component):
    """AdamW (arXiv 1711.05101), as torch.optim.AdamW; all of a step in one kernel where the device has it."""

    params_type = AdamParams
    without_effect = NOT_SGD

    @hookimpl
    def oumi_build_optimizer(self, params: AdamParams, groups: Sequence[dict[str, Any]], run: Run) -> Any:
        """Return the optimizer."""
        import torch

        return torch.optim.AdamW(groups, **torch_settings(params, groups, run))
