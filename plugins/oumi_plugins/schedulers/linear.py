"""From the learning rate to 0 on a straight line."""

from __future__ import annotations

from typing import Any

from oumi_kernel import Component, hookimpl
from oumi_kernel.component import NoParams
from oumi_kernel.contracts import Run


class Linear(Component):
    """Rises over the warm-up, then falls to 0 on a straight line."""

    @hookimpl
    def oumi_build_scheduler(self, params: NoParams, optimizer: Any, total_steps: int, run: Run) -> Any:
        """Return the schedule."""
        from oumi_plugins.schedulers._transformers import build

        return build("linear", params, optimizer, total_steps, run)
