"""AdamW."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oumi_kernel import Component, hookimpl
from oumi_kernel.contracts import Run
from oumi_plugins.optimizers.adam import AdamParams, has_fused_step


class AdamW(Component):
    """AdamW (arXiv 1711.05101), as torch.optim.AdamW; all of a step in one kernel where the device has it."""

    params_type = AdamParams
    without_effect = {"training.sgd_momentum": "it is for SGD."}

    @hookimpl
    def oumi_build_optimizer(self, params: AdamParams, groups: Sequence[dict[str, Any]], run: Run) -> Any:
        """Return the optimizer."""
        import torch

        training = run.config.training
        return torch.optim.AdamW(
            groups,
            lr=training.learning_rate,
            betas=(training.adam_beta1, training.adam_beta2),
            eps=training.adam_epsilon,
            amsgrad=params.amsgrad,
            fused=has_fused_step(groups) or None,
        )
