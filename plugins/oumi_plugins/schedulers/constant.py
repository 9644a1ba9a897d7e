"""The same learning rate all the time."""

from __future__ import annotations

from typing import Any

from oumi_kernel import Component, hookimpl
from oumi_kernel.component import NoParams
from oumi_kernel.contracts import Run


class Constant(Component):
    """Rises over the warm-up, if there is one, then stays."""

    @hookimpl
    def oumi_build_scheduler(self, params: NoParams, optimizer: Any, total_steps: int, run: Run) -> Any:
        """Return the schedule."""
        from oumi_plugins.schedulers._transformers import build

        return build("constant_with_warmup", params, optimizer, total_steps, run)
