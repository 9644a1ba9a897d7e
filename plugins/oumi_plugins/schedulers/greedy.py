"""Up while the evaluation loss falls, down when it does not."""

from __future__ import annotations

from typing import Any

from oumi_kernel import Component, hookimpl
from oumi_kernel.contracts import Run
from oumi_plugins.schedulers.needs_evaluation import NO_WARMUP, need_validation
from oumi_plugins.schedulers.reduce_lr_on_plateau import PlateauParams


class Greedy(Component):
    """Raises the learning rate while the evaluation loss falls, else lowers it. Needs a validation split."""

    params_type = PlateauParams
    unserved = NO_WARMUP

    @hookimpl
    def oumi_build_scheduler(self, params: PlateauParams, optimizer: Any, total_steps: int, run: Run) -> Any:
        """Return the schedule."""
        from oumi_plugins.schedulers._transformers import OnEvaluation, build

        need_validation("greedy", run)
        return OnEvaluation(build("greedy", params, optimizer, total_steps, run))
