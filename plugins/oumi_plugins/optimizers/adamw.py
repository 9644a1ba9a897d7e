"""AdamW, plain and fused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oumi_kernel import Component, hookimpl
from oumi_kernel.contracts import Run
from oumi_plugins.optimizers.adam import AdamParams


class AdamW(Component):
    """AdamW (arXiv 1711.05101), as torch.optim.AdamW."""

    params_type = AdamParams
    without_effect = {"training.sgd_momentum": "it is for SGD."}
    fused = False

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
            fused=self.fused or None,
        )


class FusedAdamW(AdamW):
    """AdamW with all of a step in one kernel, on CPU and GPU; the fastest of torch's."""

    fused = True
